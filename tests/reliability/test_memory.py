"""Budgets of memory are kept: the most that a process held, beyond what it held before, in a process of its own.

The system counts pages, and a process frees them when it pleases. So a bound has some room, and each budget is far below what the
work would take without it, which is measured too where the room is not small beside it.
"""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from driftway import kernels
from driftway.adapt import TransferGPRegressor
from driftway.kernels.tangent import tangent_gram
from tests.reliability import jobs
from tests.transport.recipes import draw, model_of, network

MIB, GIB = 2**20, 2**30
ROOM = 12 * MIB
STATUS = Path("/proc/self/status")

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells and resets the peak of a process")


def held(name: str) -> int:
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(name))


def measure(work, args, answer):
    """Write the peak of some work above what was held before it; a small piece of it goes first, for what the first call loads."""
    work(*args, small=True)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    kept = work(*args, small=False)
    answer.write_text(str(held("VmHWM") - before))
    del kept


def peak(tmp_path, work, *args):
    """The peak in bytes."""
    answer = tmp_path / f"{work.__name__}-{'-'.join(map(str, args))}"
    ended = jobs.run(tmp_path / "job", measure, work, args, answer)
    assert ended.code == 0, ended.said
    return int(answer.read_text())


def tangent(memory, *, small):
    """Factors of 1,024 rows of 16 positions and seven layers: 112 MiB."""
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(7)))
    x = torch.randn(32 if small else 1024, 16, 128, generator=torch.Generator().manual_seed(0))
    return tangent_gram(model, x, memory=memory, forward=lambda model, batch: model(batch).sum((1, 2)))


def test_the_factors_of_a_tangent_gram_matrix_wait_in_files(tmp_path, rounds, tally):
    memory = 16 * MIB
    most = memory + 2 * 8 * 1024 * 1024 + ROOM
    assert rounds(0, 1) == 0 or peak(tmp_path, tangent, 1.0) > most
    tally("memory: tangent_gram", peak(tmp_path, tangent, memory / GIB) < most, 1)


def blockwise(memory, *, small):
    x = draw(200 if small else 4000, 5)
    return sum(float(block.sum()) for _, block in kernels.blocks(kernels.Gaussian(1.0), x, memory=memory))


def operator(memory, *, small):
    x = draw(200 if small else 4000, 5)
    return kernels.operator(kernels.Gaussian(1.0), x, memory=memory) @ torch.ones(len(x), 1, dtype=torch.float64)


def discrepancy(memory, *, small):
    n = 100 if small else 4000
    return kernels.mmd2(draw(n, 5), draw(n, 5, seed=1), kernel=kernels.Gaussian(1.0), memory=memory)


@pytest.mark.parametrize("work", [blockwise, operator, discrepancy])
def test_a_kernel_in_blocks_is_never_whole(work, tmp_path, tally):
    """Whole it would take 122 MiB."""
    memory = 8 * MIB
    tally("memory: kernels in blocks", peak(tmp_path, work, memory / GIB) < memory + ROOM, 1)


def infinite(*, small):
    return kernels.FullyConnected(depth=3).kernels(draw(300 if small else 2000, 5))


def test_kernels_of_infinite_networks_take_the_memory_of_their_results(tmp_path, tally):
    tally("memory: exact kernels of infinite networks", peak(tmp_path, infinite) < 1.1 * 2 * 8 * 2000**2 + ROOM, 1)


def convolution(memory, *, small):
    return kernels.Convolutional(depth=2, memory=memory).ntk(draw(2 if small else 24, 1, 12, 12))


def test_kernels_of_images_keep_to_their_budget(tmp_path, tally):
    memory = 16 * MIB
    tally("memory: kernels of images", peak(tmp_path, convolution, memory / GIB) < memory + ROOM, 1)


def samples(budget, *, small):
    return model_of(network(16)).sample(2000 if small else 60_000, budget=budget)


def test_samples_are_drawn_within_a_budget(tmp_path, tally):
    """Beside the result, its parts, and what is drawn at the start."""
    result, budget = 60_000 * 16 * 8, 2**20
    tally("memory: samples of a transport", peak(tmp_path, samples, budget) < 3 * result + 8 * budget + ROOM, 1)


def adapted(n, *, small):
    """A transfer from n rows."""
    n = 200 if small else n
    rng = np.random.default_rng(0)
    X, domain = rng.normal(size=(n, 4)), np.where(np.arange(n) < n // 2, 1, -2)
    y = X @ np.ones(4) + 0.3 * rng.normal(size=n)
    made = TransferGPRegressor(max_iter=2, features=200, approximation="inducing").fit(X, y, domain)
    return made.predict(X[:50])


def test_adaptation_of_many_rows_takes_memory_in_proportion(tmp_path, rounds, tally):
    """From 6,000 rows to 12,000 the peak doubles at most, and is far below that of a matrix of all rows."""
    if rounds(0, 1) == 0:
        pytest.skip("in full only")
    small, large = (peak(tmp_path, adapted, n) for n in (6000, 12_000))
    tally("memory: adaptation of many rows", (large < 2.1 * small + ROOM) + (large < 8 * 12_000**2 / 2), 2)
