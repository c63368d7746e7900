"""The same seed gives the same result, in whatever blocks and on however many threads: to the bit where rows are drawn, to rounding else.

What is promised: a row of a sample depends on the seed and its number alone, up to rounding (`TransportModel.sample`), and its
variates do so to the bit (`SampleNoise`); a run repeats to the bit; batches and blocks of kernels change rounding alone.
"""

import contextlib

import numpy as np
import pytest
import torch

from driftway import kernels
from driftway.adapt import DINOInitRegressor, TransferGPRegressor
from driftway.kernels.tangent import tangent_features, tangent_gram
from driftway.transport import fit
from driftway.transport.policy import BLOCK, SampleNoise
from tests.reliability import jobs
from tests.transport.recipes import DOUBLE, FAMILIES, SMALL, draw, identical, mixture, model_of, network, rng, uneven


@contextlib.contextmanager
def threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def close(a, b, rounding=1e-9):
    torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)
    return True


def test_variates_of_a_row_depend_on_the_seed_and_its_number_alone(rounds, tally):
    chance, n = np.random.default_rng(0), rounds(20, 500)
    like, known = torch.empty(0, dtype=DOUBLE), {}
    for seed in range(3):
        noise = SampleNoise(seed, first=0, n=4 * BLOCK, like=like)
        known[seed] = [noise.normal(2), noise.uniform(), noise.normal(2)]
    passed = 0
    for _ in range(n):
        seed, first, size = int(chance.integers(3)), BLOCK * int(chance.integers(3)), int(chance.integers(1, BLOCK))
        noise = SampleNoise(seed, first=first, n=size, like=like)
        with threads(int(chance.integers(1, 3))):
            drawn = [noise.normal(2), noise.uniform(), noise.normal(2)]
        passed += all(torch.equal(own, whole[first : first + size]) for own, whole in zip(drawn, known[seed], strict=True))
    assert not torch.equal(known[0][0], known[1][0])
    tally("seeds: variates of rows, to the bit", passed, n)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("make", [mixture, network])
def test_rows_of_a_sample_depend_on_the_seed_and_their_number_alone(make, sigma, rounds, tally):
    """For any number of rows, budget of memory and number of threads."""
    model, chance, n = model_of(make(3), sigma=sigma), np.random.default_rng(1), rounds(4, 40)
    whole = model.sample(700, seed=5, steps=3)
    passed = 0
    for _ in range(n):
        with threads(int(chance.integers(1, 3))):
            size, budget = int(chance.integers(1, 700)), int(2 ** chance.integers(4, 22))
            passed += close(model.sample(size, seed=5, steps=3, budget=budget), whole[:size])
    assert not torch.allclose(model.sample(700, seed=6, steps=3), whole)
    tally("seeds: rows of a sample", passed, n)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_repeats_to_the_bit(family, tally):
    first, second, other = (fit(None, uneven(120), family=family, settings=SMALL, steps=8, seed=seed).value_function.state_dict()
                            for seed in (3, 3, 4))  # fmt: skip
    assert not identical(first, other)
    tally("seeds: runs of a transport, to the bit", identical(first, second), 1)


def test_global_randomness_plays_no_part(tally):
    """Neither is it used, nor changed."""
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (the global generator is what is looked at)
        before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        model = fit(None, uneven(120), family="network", settings=SMALL, steps=4, seed=3)
        found.append({**model.value_function.state_dict(), "sample": model.sample(20, seed=1)})
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    tally("seeds: global randomness is neither used nor changed", identical(*found), 1)


def test_a_tangent_gram_matrix_does_not_depend_on_its_batches(rounds, tally):
    model, x = jobs.perceptron()
    known, chance, n = tangent_gram(model, x), np.random.default_rng(2), rounds(4, 40)
    passed = 0
    for _ in range(n):
        with threads(int(chance.integers(1, 3))):
            size, memory = int(chance.integers(1, 21)), float(10 ** chance.uniform(-9, 0))
            passed += close(tangent_gram(model, x, batch_size=size, memory=memory), known)
    sketches = [tangent_features(model, x, batch_size=size).project(8, generator=rng(1)).features for size in (3, 20)]
    tally("seeds: tangent kernels in batches", passed + close(*sketches), n + 1)


def test_kernels_in_blocks_are_those_of_the_whole(rounds, tally):
    x, chance, n = draw(60, 4), np.random.default_rng(3), rounds(2, 40)
    passed = 0
    for kernel in (kernels.Gaussian(1.0), kernels.FullyConnected(depth=2).ntk):
        whole = kernel(x)
        for _ in range(n):
            with threads(int(chance.integers(1, 3))):
                parts = kernels.blocks(kernel, x, memory=float(10 ** chance.uniform(-9, -3)))
                passed += close(torch.cat([block for _, block in parts]), whole)
    tally("seeds: kernels in blocks", passed, 2 * n)


@pytest.mark.parametrize("kind", [TransferGPRegressor, DINOInitRegressor])
def test_adaptation_repeats_to_the_bit(kind, tally):
    own = np.random.default_rng(0)
    X, domain = own.normal(size=(30, 2)), np.where(np.arange(30) < 20, 1, -2)
    y = X.sum(1) + 0.1 * own.normal(size=30)
    first, second = (kind(max_iter=3, random_state=4).fit(X, y, domain).predict(X, return_std=True) for _ in range(2))
    tally("seeds: adaptation, to the bit", all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), 1)
