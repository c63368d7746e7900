"""Valid calls of public functions on very small data, and the kinds of values that each argument is replaced by."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from driftway import adapt, finetune, kernels, linalg, stopping, transport
from driftway.finetune.merging import changes, kernel_changes, sample_weights
from tests.reliability.strategies import COUNTS, NOT_NEGATIVE, POSITIVE, SEEDS, Kind, arrays, choices, finite, values

OTHER = ("a", {}, [1], None, math.nan)


@dataclass(frozen=True)
class Call:
    """A function, valid arguments, and what may stand in their place.

    Attributes:
        name: of the call.
        function: with keywords alone.
        given: makes new valid arguments.
        kinds: of values for each argument that is replaced.
        check: of a result, with the arguments it came from.
        known: further names that an error may call an argument by.
        others: packages whose own checks of values may speak before ours.
    """

    name: str
    function: Callable[..., Any] = field(repr=False)
    given: Callable[[], dict[str, Any]] = field(repr=False)
    kinds: dict[str, list[Kind]] = field(repr=False)
    check: Callable[[Any, dict[str, Any]], None] = field(repr=False)
    also: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        """Names that an error may use."""
        return (*self.given(), *self.kinds, *self.also)


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def gram(n: int = 6) -> torch.Tensor:
    x = tensor(n, 4)
    return x @ x.mT + 0.1 * torch.eye(n)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def all_finite(result: Any, given: dict[str, Any]) -> None:
    finite(result)


# Transport.

TINY = transport.Settings(batch=8, candidates=8, mixture_batch=8, components=2, width=4, depth=1, heads=2, base=1)


def sampled(model: transport.TransportModel, given: dict[str, Any]) -> None:
    x = rows(5, 1).repeat(model.scaler.shift.numel(), 1).reshape(5, *model.event)
    start = torch.tensor(x).to(model.scaler.shift)
    drawn = model.sample(
        5 if model.scaler.noise else start * model.scaler.cost_scale**0.5 + model.scaler.shift.reshape(model.event), steps=2
    )
    assert drawn.shape == (5, *model.event)
    finite(drawn)
    finite(model.value_function.state_dict())


@cache
def fitted(source: bool = True, labels: bool = False) -> transport.TransportModel:
    y = torch.tensor(rows(12, 2))
    return transport.fit(torch.tensor(rows(12, 2, 1)) if source else None, y, labels=[0, 1] * 6 if labels else None, steps=1, settings=TINY,
                         family="mixture")  # fmt: skip


LABELS = values([0, 1] * 6, ["a", "b"] * 6, np.array([0, 1] * 6), torch.tensor([0, 1] * 6), [1.0, 2.0] * 6, [True, False] * 6, rows(12, 2),
                rows(12, 1).tolist(), np.array(["x", "y"] * 6, dtype=object), list(range(12)), [0] * 12, [10**30, 1] * 6, ["", "b"] * 6,
                torch.tensor([0, 1] * 6, dtype=torch.uint8), torch.tensor(rows(12, 2), requires_grad=True),
                wrong=([0, 1], [None, 1] * 6, [math.nan, 1.0] * 6, [0.5, 1] * 6, [0, "a"] * 6, "batch", "abc", 3, {}, rows(5, 2), [],
                       np.full((12, 2), math.inf), [[1, 2], [3]] * 6, [{}] * 12, rows(12, 2) + 1j,
                       np.array([np.datetime64("2026-01-01")] * 12)))  # fmt: skip
SAMPLER = [
    *values(
        lambda n, generator: torch.randn(n, 2, generator=generator, dtype=torch.float64),
        lambda n: torch.randn(n, 2, dtype=torch.float64),
    ),
    *values(
        wrong=(
            lambda: 1,
            lambda n: None,
            lambda n: torch.zeros(n + 1, 2),
            lambda n: torch.full((n, 2), math.nan),
            lambda n: "a",
            print,
            lambda n: torch.zeros(n, 2) + 1j,
        )
    ),
]
SETTINGS = values(TINY, None, wrong=(1, {}, "x", transport.Settings))
TRANSPORT = [
    Call(
        "fit",
        transport.fit,
        lambda: {"source": rows(12, 2, 1), "target": rows(12, 2), "steps": 1, "settings": TINY, "family": "mixture"},
        {
            "source": [*arrays(12, 2, none=True), *SAMPLER],
            "target": [*arrays(12, 2), *SAMPLER],
            "labels": LABELS,
            "source_labels": LABELS,
            "family": choices("auto", "mixture", "network", "residual", "vector"),
            "steps": values(1, 2, wrong=(0, -1, True, 1.5, "a", [1])),
            "max_seconds": values(1e-9, np.float32(1e-3), wrong=(0, -1, math.inf, True, *OTHER[:3], math.nan)),
            "gap": values(1e9, wrong=(0, -1, *OTHER[:3], math.nan)),
            "seed": SEEDS,
            "settings": SETTINGS,
            "problem": values(None, transport.Problem(3), transport.Problem(sigma=0.5), wrong=(1, {}, "x")),
            "standardize": choices("auto", "common", "none", "columns"),
            "holdout": values(0, 0.5, 0.9, wrong=(-0.1, 1, 2, True, math.inf, *OTHER)),
            "held": values(
                None,
                (rows(4, 2), rows(4, 2)),
                wrong=((None, None), (rows(4, 3), rows(4, 2)), (rows(4, 2),), "ab", 3, (rows(1, 2), rows(1, 2))),
            ),
            "certify_every": COUNTS,
            "checkpoint_seconds": NOT_NEGATIVE,
            "on_step": values(None, wrong=(3, "x")),
            "out": values(None, wrong=("/dev/null/x", 3, b"\0", "", "a\0")),
        },
        sampled,
        also=("held source", "held target", "resume"),
    ),
    Call(
        "fit from the normal",
        transport.fit,
        lambda: {"source": None, "target": rows(12, 2), "steps": 1, "settings": TINY, "family": "residual"},
        {
            "target": [*arrays(12, 2), *SAMPLER],
            "labels": LABELS,
            "family": choices("auto", "mixture", "network", "residual", "vector"),
            "problem": values(None, transport.Problem(3, sigma=1.0), transport.Problem(eps=1e-3), wrong=(1, {}, "x")),
            "standardize": choices("auto", "common", "none", "columns"),
            "seed": SEEDS,
        },
        sampled,
    ),
    Call(
        "fit of images",
        transport.fit,
        lambda: {"source": None, "target": np.random.default_rng(0).random((12, 1, 4, 4)), "steps": 1, "settings": TINY},
        {"target": arrays(12, 1, 4, 4), "labels": LABELS, "seed": SEEDS},
        sampled,
    ),
    Call(
        "fit_table",
        transport.fit_table,
        lambda: {"source": rows(12, 2, 1), "y": rows(6, 2), "max_steps": 3, "batch": 8, "tolerance": 0.5},
        {
            "source": [*arrays(12, 2, none=True), *SAMPLER],
            "y": arrays(6, 2),
            "eps": NOT_NEGATIVE,
            "tolerance": values(0.1, 0.5, 1, wrong=(0, -1, math.inf, *OTHER)),
            "batch": COUNTS,
            "max_steps": COUNTS,
            "seed": SEEDS,
            "standardize": choices("auto", "common", "none", "columns"),
            "start": values(None, fitted(), wrong=(fitted(source=False), 3, "x", {})),
        },
        sampled,
    ),
    Call(
        "sample",
        lambda **given: fitted().sample(**given),
        lambda: {"x0": torch.tensor(rows(5, 2)), "steps": 2},
        {
            "x0": arrays(5, 2),
            "steps": values(
                1,
                3,
                [0, 0.5, 1],
                (0.0, 1.0),
                np.int64(2),
                wrong=(0, -1, True, 1.5, None, "a", [], [0], [0, 1, 1], [0, math.nan, 1], [0.1, 1], ["a", 1], {}),
            ),
            "label": values(None, wrong=(0, "a", [1], {})),
            "guidance": values(1, 1.0, wrong=(2.0, math.nan, math.inf, "a", None, True)),
            "rule": choices("auto", "explicit", "proximal", "endpoint"),
            "seed": SEEDS,
            "budget": COUNTS,
            "on_step": values(None, wrong=(3, "a")),
        },
        lambda result, given: (finite(result), np.testing.assert_equal(len(result), len(given["x0"]))),
    ),
    Call(
        "sample with labels",
        lambda **given: fitted(source=False, labels=True).sample(**given),
        lambda: {"x0": 4, "steps": 2},
        {
            "x0": [*values(1, 3, np.int64(3), wrong=(0, -1, True, 1.5, None, "a", math.nan, 10**15)), *arrays(5, 2)],
            "label": values(
                None,
                0,
                1,
                "0",
                [0],
                [0, 1, 0, 1],
                np.int64(1),
                torch.tensor(1),
                torch.tensor([1]),
                np.array([0, 1, 1, 1]),
                True,
                wrong=(2, -1, "a", [0, 1], {}, 0.5, math.nan, [None] * 4, [[0]] * 4),
            ),
            "guidance": values(0, 1, 2.5, -1, wrong=(math.nan, math.inf, "a", None, True)),
            "seed": SEEDS,
        },
        all_finite,
    ),
    Call(
        "path",
        lambda **given: fitted().path(**given),
        lambda: {"x0": torch.tensor(rows(5, 2)), "steps": 2},
        {"x0": arrays(5, 2), "steps": values(1, [0, 1], wrong=(0, None, "a", []))},
        all_finite,
    ),
    Call(
        "value",
        lambda **given: fitted().value(**given),
        lambda: {"x": torch.tensor(rows(5, 2)), "t": 0.5},
        {"x": arrays(5, 2), "t": values(0, 0.3, 1, np.float32(0.5), wrong=(-0.1, 1.1, math.nan, "a", None, True, [0.5]))},
        all_finite,
    ),
    Call(
        "price", lambda **given: fitted().price(**given), lambda: {"y": torch.tensor(rows(5, 2))}, {"y": arrays(5, 2)}, all_finite
    ),
    Call(
        "certificate",
        transport.certificate,
        lambda: {"model": fitted(), "x": torch.tensor(rows(5, 2)), "y": torch.tensor(rows(5, 2))},
        {
            "x": arrays(5, 2),
            "y": arrays(5, 2),
            "steps": values(1, wrong=(0, None, "a")),
            "rule": choices("auto", "explicit"),
            "label": values(None, wrong=(0, "a")),
        },
        all_finite,
    ),
    Call(
        "Settings",
        transport.Settings,
        dict,
        {
            **dict.fromkeys(("batch", "candidates", "mixture_batch", "depth", "base", "heads", "components"), COUNTS),
            "rank": values(-1, 0, 3, wrong=(-2, 1.5, "a", None)),
            "width": values(None, 4, wrong=(0, 1.5, "a")),
            "precision": choices("float32", "bfloat16"),
            "compiled": values(True, False, wrong=("no", None, 3)),
            **dict.fromkeys(("level", "closeness"), NOT_NEGATIVE),
            **dict.fromkeys(("lr", "mixture_lr", "eps_start", "eps_end", "mixture_eps_end"), POSITIVE),
            "dropout": values(0, 0.5, wrong=(1, -0.1, *OTHER)),
        },
        lambda result, given: None,
    ),
    Call(
        "Problem",
        transport.Problem,
        dict,
        {"horizon": COUNTS, "sigma": NOT_NEGATIVE, "eps": [*POSITIVE[:4], *values(None)]},
        lambda result, given: None,
    ),
]

# Kernels.

NET = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
TEXTS = values(wrong=("a", 3, None, {}, []))
CONV = {"depth": 2, "size": 3} if False else {}
WEIGHTS = arrays(6)
KERNELS = [
    Call(
        "FullyConnected",
        lambda x, y=None, **options: kernels.FullyConnected(**options).kernels(x, y),
        lambda: {"depth": 2, "x": tensor(6, 3)},
        {
            "x": arrays(6, 3),
            "y": arrays(6, 3, none=True),
            "depth": [*values(0), *COUNTS[:4], *values(wrong=(-1, 1.5, "a"))],
            "activation": choices("relu", "leaky_relu", "abs", "erf", "gelu"),
            "w_std": POSITIVE,
            "b_std": [*NOT_NEGATIVE, *values(None)],
            "parameterization": choices("ntk", "standard"),
            "width": COUNTS,
        },
        all_finite,
        also=("w_std, b_std",),
    ),
    Call(
        "nngp",
        lambda x, y=None, **options: kernels.FullyConnected(**options).nngp(x, y),
        lambda: {"depth": 1, "x": tensor(6, 3)},
        {"x": arrays(6, 3), "y": arrays(6, 3, none=True)},
        all_finite,
    ),
    Call(
        "Gaussian",
        lambda x, y=None, bandwidth=1.0: kernels.Gaussian(bandwidth)(x, y),
        lambda: {"x": tensor(6, 3)},
        {"x": arrays(6, 3), "y": arrays(6, 3, none=True), "bandwidth": POSITIVE},
        all_finite,
    ),
    Call(
        "Energy",
        lambda x, y=None: kernels.Energy()(x, y),
        lambda: {"x": tensor(6, 3)},
        {"x": arrays(6, 3), "y": arrays(6, 3, none=True)},
        all_finite,
    ),
    Call(
        "Linear",
        lambda x, y=None: kernels.Linear()(x, y),
        lambda: {"x": tensor(6, 3)},
        {"x": arrays(6, 3), "y": arrays(6, 3, none=True)},
        all_finite,
    ),
    Call(
        "median_bandwidth",
        kernels.median_bandwidth,
        lambda: {"x": tensor(6, 3)},
        {"x": arrays(6, 3), "y": arrays(6, 3, none=True), "rows": COUNTS},
        all_finite,
    ),
    Call(
        "mmd_test",
        kernels.mmd_test,
        lambda: {
            "x": tensor(6, 3),
            "y": tensor(5, 3, seed=1),
            "kernel": kernels.Gaussian(1.0),
            "generator": generator(),
            "permutations": 9,
        },
        {
            "x": arrays(6, 3),
            "y": arrays(5, 3),
            "permutations": COUNTS,
            "statistic": choices("u", "v"),
            "level": values(0.1, wrong=(0, 1, 2, *OTHER)),
            "kernel": values(kernels.Energy(), kernels.Linear(), wrong=(None, 3, "gaussian")),
            "generator": values(wrong=(None, 3, "a")),
        },
        all_finite,
        also=("K", "n"),
    ),
    Call(
        "mmd_test_from_gram",
        kernels.mmd_test_from_gram,
        lambda: {"K": gram(), "n": 3, "generator": generator(), "permutations": 9},
        {"K": arrays(6, 6), "n": values(2, 4, wrong=(0, 1, 5, 6, 7, -1, True, 1.5, None, "a")), "permutations": COUNTS},
        all_finite,
    ),
    Call(
        "mmd2",
        kernels.mmd2,
        lambda: {"x": tensor(6, 3), "y": tensor(5, 3, seed=1), "kernel": kernels.Gaussian(1.0)},
        {
            "x": arrays(6, 3),
            "y": arrays(5, 3),
            "weights_x": arrays(6, none=True),
            "statistic": choices("u", "v"),
            "memory": POSITIVE,
        },
        all_finite,
    ),
    Call(
        "mmd2_from_gram",
        kernels.mmd2_from_gram,
        lambda: {"K_xx": gram(), "K_xy": gram()[:, :5], "K_yy": gram(5)},
        {
            "K_xx": arrays(6, 6),
            "K_xy": arrays(6, 5),
            "K_yy": arrays(5, 5),
            "weights_x": arrays(6, none=True),
            "statistic": choices("u", "v"),
        },
        all_finite,
    ),
    Call(
        "witness",
        lambda z, **given: kernels.witness(**given).evaluate(z),
        lambda: {"x": tensor(6, 3), "y": tensor(5, 3, seed=1), "z": tensor(2, 3), "kernel": kernels.Gaussian(1.0)},
        {"x": arrays(6, 3), "y": arrays(5, 3), "z": arrays(2, 3), "weights_y": arrays(5, none=True)},
        all_finite,
    ),
    Call(
        "posterior",
        lambda cross, diagonal, **given: (
            (p := kernels.posterior(**given)) and (p.mean(cross), p.variance(cross, diagonal), p.log_marginal_likelihood())
        ),
        lambda: {"K": gram(), "y": tensor(6), "noise": 0.1, "cross": gram()[:2], "diagonal": gram().diagonal()[:2]},
        {
            "K": arrays(6, 6),
            "y": arrays(6),
            "noise": [*NOT_NEGATIVE, *(kind for kind in arrays(6) if kind.name not in ("one number", "no axis"))],
            "relative_noise": NOT_NEGATIVE,
            "cross": arrays(2, 6),
            "diagonal": arrays(2),
        },
        all_finite,
    ),
    Call(
        "gradient_flow",
        lambda cross, t, **given: (f := kernels.gradient_flow(**given)) and (f.mean(cross, t), f.residual(t)),
        lambda: {"Theta": gram(), "y": tensor(6), "cross": gram()[:2], "t": 1.0},
        {
            "Theta": arrays(6, 6),
            "y": arrays(6),
            "ridge": NOT_NEGATIVE,
            "relative_ridge": NOT_NEGATIVE,
            "cross": arrays(2, 6),
            "t": values(
                0,
                1e-300,
                3,
                1e300,
                math.inf,
                torch.tensor([0.0, 1.0]),
                [0.0, 2.0],
                wrong=(-1, math.nan, "a", None, [-1.0], {}, 1j, torch.zeros(1, device="meta")),
            ),
        },
        all_finite,
    ),
    Call(
        "tangent_gram",
        kernels.tangent_gram,
        lambda: {"model": NET, "batches": tensor(5, 3)},
        {
            "model": values(wrong=(None, 3, "bert", nn.ReLU(), nn.Sequential, lambda x: x)),
            "batches": [*arrays(5, 3), *TEXTS],
            "other": arrays(4, 3, none=True),
            "scope": values("all", "trainable", "*.bias", ("0.*",), wrong=("", "none", 3, None, [], [3], {})),
            "outputs": values(
                "trace",
                "full",
                0,
                (1, 0),
                torch.tensor([1.0, -1.0]),
                wrong=("", 5, (0, 7), (0,), None, 1.5, torch.zeros(3), [0, 1, 1], True),
            ),
            "sign": choices("none", "both", "left"),
            "batch_size": COUNTS,
            "memory": values(1, 0.5, wrong=(0, -1, *OTHER)),
            "test": choices("first", "every"),
            "dtype": values(None, torch.float32, torch.float64, wrong=(torch.int64, "float32", 3, float)),
            "weights": values(None, wrong=({}, {"a": 1.0}, 3, "a")),
        },
        all_finite,
        also=("forward", "features", "parameters"),
    ),
    Call(
        "TangentKernel",
        lambda x, y=None: kernels.TangentKernel(NET)(x, y),
        lambda: {"x": tensor(5, 3)},
        {"x": arrays(5, 3), "y": arrays(5, 3, none=True)},
        all_finite,
        also=("batches", "other", "forward"),
    ),
]

# Linear algebra and stopping rules.


def operator() -> linalg.SymmetricOperator:
    return linalg.dense_operator(gram())


def spectrum() -> linalg.Spectrum:
    return linalg.eigendecompose(gram())


VECTORS = values(
    tensor(6),
    tensor(6, 2),
    tensor(6)[::1],
    wrong=(None, 3, "a", tensor(5), tensor(6).float(), rows(6, 1), tensor(6, 1, 1), [1.0] * 6, torch.tensor(1.0)),
)
RULE = values(*stopping.RULES[:-2], wrong=("", "holdout", "oracle", "none", None, 3))
ONE_HOT = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 1, 0, 1, 1, 0])]


def stop_is_sound(stop: stopping.Stop, given: dict[str, Any]) -> None:
    assert stop.eta >= 0
    finite(stop, gaps=("eta", "lam", "sensitivity", "validation", "curves"))


LINALG = [
    Call(
        "eigendecompose",
        linalg.eigendecompose,
        lambda: {"K": gram()},
        {"K": arrays(6, 6), "k": [*COUNTS, *values(None, 100)][:6]},
        all_finite,
    ),
    Call(
        "cholesky",
        lambda b, **given: linalg.cholesky(**given).solve(b),
        lambda: {"K": gram(), "b": tensor(6)},
        {"K": arrays(6, 6), "jitter": NOT_NEGATIVE},
        all_finite,
    ),
    Call(
        "conjugate_gradient",
        linalg.conjugate_gradient,
        lambda: {"op": operator(), "b": tensor(6)},
        {"b": arrays(6), "tolerance": POSITIVE, "steps": COUNTS, "op": values(wrong=(None, 3, "a", gram()))},
        all_finite,
        also=("v",),
    ),
    Call(
        "lanczos",
        linalg.lanczos,
        lambda: {"op": operator(), "k": 2, "generator": generator()},
        {"k": [*COUNTS, *values(6, wrong=(7, 100))], "tolerance": [*POSITIVE, *values(None)], "steps": COUNTS},
        all_finite,
    ),
    Call(
        "dense_operator",
        lambda v, **given: linalg.dense_operator(**given) @ v,
        lambda: {"K": gram(), "v": tensor(6)},
        {"K": arrays(6, 6), "v": VECTORS},
        all_finite,
    ),
    Call(
        "gram_operator",
        lambda v, **given: linalg.gram_operator(**given) @ v,
        lambda: {"J": tensor(6, 4), "v": tensor(6)},
        {"J": arrays(6, 4), "v": VECTORS},
        all_finite,
    ),
    Call(
        "Spectrum",
        lambda lam, **given: (s := linalg.Spectrum(**given)) and (s, s.effective_dimension(lam)),
        lambda: {"values": [1.0, 0.5], "size": 4, "lam": 0.1},
        {
            "values": arrays(4),
            "size": COUNTS,
            "trace": [*NOT_NEGATIVE, *values(math.nan)][:8],
            "vectors": arrays(4, 2, none=True),
            "lam": [*POSITIVE[:8], *values([0.1, 1.0], torch.tensor([1.0]), wrong=(0, -1, math.inf, math.nan, "a", None, [0.0]))],
        },
        all_finite,
    ),
    Call(
        "fit_decay",
        linalg.fit_decay,
        lambda: {"spectrum": spectrum()},
        {"confidence": values(0.5, 0.999, wrong=(0, 1, 2, *OTHER)), "spectrum": values(wrong=(None, 3, [1.0], tensor(3)))},
        lambda result, given: None,
    ),
    Call(
        "pivoted_cholesky",
        linalg.pivoted_cholesky,
        lambda: {"diagonal": gram().diagonal(), "column": lambda i: gram()[:, i], "rank": 3},
        {"diagonal": arrays(6), "rank": [*COUNTS, *values(100)], "tolerance": NOT_NEGATIVE, "column": values(wrong=(None, 3))},
        all_finite,
    ),
    Call(
        "stopping_time",
        stopping.stopping_time,
        lambda: {"spectrum": spectrum(), "residual": tensor(6)},
        {
            "residual": arrays(6),
            "rule": RULE,
            "sigma": [*POSITIVE, *values(None)][:8],
            "radius": [*POSITIVE, *values(None)][:8],
            "schedule": values(None, stopping.Schedule(0.1), stopping.Schedule([0.1, 0.2]), wrong=(0.1, "a", [0.1])),
            "rows": [*values(None, 6, 100), *values(wrong=(0, -1, True, 1.5, "a"))],
            "batch": [*values(None, 2), *values(wrong=(0, -1, 1.5, "a"))],
            "tau": POSITIVE,
            "spectrum": values(wrong=(None, 3, gram())),
        },
        stop_is_sound,
        also=("held", "truth", "validation", "y"),
    ),
    Call(
        "holdout",
        lambda cross, held, **given: stopping.stopping_time(**given, rule="holdout", held=(cross, held)),
        lambda: {"spectrum": spectrum(), "residual": tensor(6), "cross": gram()[:3], "held": tensor(3)},
        {"cross": arrays(3, 6), "held": arrays(3), "residual": arrays(6)},
        stop_is_sound,
        also=("y",),
    ),
    Call(
        "oracle",
        lambda **given: stopping.stopping_time(**given, rule="oracle"),
        lambda: {"spectrum": spectrum(), "residual": tensor(6), "truth": tensor(6, seed=1)},
        {"truth": arrays(6, none=False)},
        stop_is_sound,
        also=("y",),
    ),
    Call(
        "cross_validate",
        stopping.cross_validate,
        lambda: {"K": gram(), "y": tensor(6), "folds": 2},
        {
            "K": arrays(6, 6),
            "y": arrays(6),
            "start": arrays(6, none=True),
            "folds": values(2, 6, wrong=(0, 1, 7, True, 1.5, None, "a")),
            "loss": choices("squared"),
        },
        lambda result, given: finite(result, gaps=("error",)),
        also=("residual",),
    ),
    Call(
        "cross_validate classes",
        stopping.cross_validate,
        lambda: {"K": gram(), "y": ONE_HOT, "folds": 2, "loss": "cross_entropy"},
        {"K": arrays(6, 6), "y": arrays(6, 2), "start": arrays(6, 2, none=True)},
        lambda result, given: finite(result, gaps=("error",)),
        also=("residual",),
    ),
    Call(
        "logistic_path",
        stopping.logistic_path,
        lambda: {"K": gram(), "y": ONE_HOT, "eta": torch.tensor([0.0, 1.0], dtype=torch.float64)},
        {
            "K": arrays(6, 6),
            "y": arrays(6, 2),
            "start": arrays(6, 2, none=True),
            "steps": COUNTS,
            "eta": [
                *arrays(2),
                *values(
                    [0.0, 1.0],
                    torch.tensor([1.0, 1.0]),
                    wrong=(torch.tensor([1.0, 0.0]), torch.tensor([-1.0]), [math.nan], torch.tensor([1e300]), 1.0),
                ),
            ],
        },
        all_finite,
    ),
    Call(
        "working_problem",
        stopping.working_problem,
        lambda: {"K": gram(), "y": ONE_HOT},
        {"K": arrays(6, 6), "y": arrays(6, 2), "start": arrays(6, 2, none=True)},
        all_finite,
    ),
    Call(
        "centred_one_hot",
        stopping.centred_one_hot,
        lambda: {"labels": torch.tensor([0, 1, 1])},
        {
            "labels": [
                *arrays(3),
                *values(
                    torch.tensor([0, 5]),
                    torch.tensor([True, False]),
                    torch.tensor([0, 1], dtype=torch.uint8),
                    [0, 1],
                    wrong=(
                        torch.tensor([0, -1]),
                        torch.tensor([1, 1]),
                        torch.tensor([0, 2**62]),
                        torch.tensor([[0, 1]]),
                        ["a", "b"],
                        "ab",
                        None,
                    ),
                ),
            ]
        },
        all_finite,
    ),
    Call(
        "Schedule",
        lambda eta, **given: (s := stopping.Schedule(**given)) and (s.steps_for(eta), s.epochs_for(eta, 10, 3), s.eta(1)),
        lambda: {"rates": 0.1, "eta": 1.0},
        {
            "rates": [
                *POSITIVE[:8],
                *values(
                    [0.1],
                    (0, 0.2),
                    np.array([0.1, 0.2]),
                    torch.tensor([0.1, 0.2]),
                    wrong=(0, -1, math.inf, [], [0], [math.nan], [-1.0], None, ["a"], [[0.1]]),
                ),
            ],
            "scale": POSITIVE,
            "eta": values(0, 1, 1e-300, 1e6, math.inf, wrong=(-1, math.nan, "a", None)),
        },
        all_finite,
        also=("steps",),
    ),
    Call(
        "Flow",
        lambda eta, **given: (f := stopping.Flow(**given)) and (f.loss(eta), f.dof(eta), stopping.fit_noise(f)),
        lambda: {"spectrum": spectrum(), "r": tensor(6), "eta": 1.0},
        {"r": arrays(6), "spectrum": values(wrong=(None, gram()))},
        all_finite,
        also=("residual", "y"),
    ),
]

# Fine-tuning.


def net(seed: int = 0) -> nn.Module:
    own = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=own))
    return model.eval()


BASE, TUNED, FURTHER = (net(seed) for seed in range(3))
VECTOR = finetune.TaskVector.between(BASE, TUNED)
STATE = BASE.state_dict()
STATES = values({}, {"a": torch.zeros(2)}, wrong=(None, 3, "bert", [1], {"a": 1}, {3: torch.zeros(2)}, nn.Linear))
SCALES = values(0, 1, -2.5, np.float32(0.5), wrong=(math.nan, math.inf, "a", None, True, [1.0]))
D = [torch.stack([tensor(5, seed=2 * A + k) for k in range(2)]) for A in range(2)]
FINETUNE = [
    Call(
        "TaskVector.between",
        lambda **given: finetune.TaskVector.between(**given).tensors,
        lambda: {"base": BASE, "tuned": TUNED},
        {
            "base": [*STATES, *values(STATE, nn.ReLU(), nn.Linear(2, 2))],
            "tuned": [*STATES, *values(TUNED.state_dict(), nn.ReLU())],
            "scope": values("all", "*.bias", wrong=("", "none", 3, None, [], [3])),
        },
        all_finite,
        also=("model",),
    ),
    Call(
        "applied_to",
        lambda **given: VECTOR.applied_to(**given),
        lambda: {"state": STATE},
        {
            "state": [*STATES[2:], *values(wrong=({}, {"a": torch.zeros(2)}, {name: t[:1] for name, t in STATE.items()}))],
            "scale": SCALES,
        },
        all_finite,
    ),
    Call(
        "apply",
        lambda **given: VECTOR.apply(**given).state_dict(),
        lambda: {"model": BASE},
        {"model": values(wrong=(nn.ReLU(), nn.Linear(2, 2), None, 3, "bert", {}, nn.Linear)), "scale": SCALES},
        all_finite,
    ),
    Call(
        "sum",
        lambda a, b, c: ((a + b) * c).tensors,
        lambda: {"a": VECTOR, "b": VECTOR, "c": 0.5},
        {"c": SCALES, "b": values(wrong=(finetune.TaskVector({}), finetune.TaskVector({"a": torch.zeros(2)})))},
        all_finite,
        also=("vectors", "coefficients"),
    ),
    Call(
        "cosine",
        lambda other: VECTOR.cosine(other),
        lambda: {"other": VECTOR},
        {"other": values(VECTOR * 2, wrong=(VECTOR * 0, finetune.TaskVector({}), None, 3, {}))},
        all_finite,
        also=("a", "b"),
    ),
    Call(
        "plan_merge",
        finetune.plan_merge,
        lambda: {"changes": D, "residuals": [tensor(5), tensor(5, seed=1)]},
        {
            "changes": [*arrays(2, 2, 5), *values(wrong=([], D[:1], [D[0], D[1][:1]], [D[0], None], ["a", "b"], 3))],
            "residuals": [*arrays(2, 5), *values(wrong=([], [tensor(5)], [tensor(5), tensor(4)], [None, None], 3))],
            "weights": values(None, [1, 2], [1, 0], (0.5, 1.0), wrong=([], [1], [1, math.nan], ["a", 1], [-1, -1], 3, "ab")),
            "nonnegative": values(True, False, wrong=("no", 3, None)),
            "ridge": NOT_NEGATIVE,
            "names": values(None, ["a", "b"], wrong=([], ["a"], 3)),
        },
        lambda result, given: finite(result, gaps=("interference",)),
    ),
    Call(
        "sample_weights",
        sample_weights,
        lambda: {"K": gram(), "residual": tensor(6)},
        {
            "K": arrays(6, 6),
            "residual": arrays(6),
            "eta": values(0, 1, math.inf, wrong=(-1, math.nan, "a", None, True)),
            "ridge": NOT_NEGATIVE,
        },
        all_finite,
        also=("y", "Theta", "t"),
    ),
    Call(
        "kernel_changes",
        kernel_changes,
        lambda: {"K": [[gram()]], "weights": [tensor(6)], "residuals": [tensor(6)]},
        {
            "K": values(wrong=([], [[]], [[gram(5)]], 3, None)),
            "weights": values(wrong=([], [tensor(5)], [None], 3)),
            "residuals": values(wrong=([], [tensor(5)], [None], 3)),
        },
        all_finite,
    ),
    Call(
        "changes",
        lambda rows, vectors: changes([kernels.tangent_features(BASE, rows)], vectors),
        lambda: {"rows": tensor(5, 3), "vectors": [VECTOR]},
        {
            "rows": [kind for kind in arrays(5, 3) if kind.name != "-inf"],
            "vectors": values([VECTOR, VECTOR], wrong=([finetune.TaskVector({"a": torch.zeros(2)})], 3, None, [None])),
        },
        all_finite,
        also=("batches", "features", "forward"),
    ),
    Call(
        "Linearized",
        lambda x, **given: finetune.Linearized(**given)(x).detach(),
        lambda: {"model": BASE, "x": tensor(5, 3).float()},
        {
            "model": values(wrong=(None, 3, "bert", nn.ReLU(), nn.Linear, {})),
            "scope": values("all", "*.bias", wrong=("", "none", 3, None, [])),
            "at": values(None, VECTOR, wrong=(finetune.TaskVector({"a": torch.zeros(2)}), 3, "a")),
        },
        all_finite,
    ),
]

# Adaptation.

N, TARGET = 14, 6  # rows, of which the last are the target's
CODES = np.array([1] * (N - TARGET) + [-2] * TARGET)


def y_of(k: int = 0) -> np.ndarray:
    y = rows(N, max(k, 1), 5)
    y[-2:] = np.nan
    return y if k else y[:, 0]


GAPS = [kind for kind in arrays(N) if kind.name not in ("nan", "nan tensor", "masked")]
CODE = [
    *arrays(N, none=True),
    *values(
        CODES,
        CODES.tolist(),
        CODES.astype(float),
        torch.tensor(CODES),
        np.array([3, 1] * 4 + [-7] * 6),
        None,
        wrong=(
            np.ones(N),
            -np.arange(1, N + 1),
            CODES * 0,
            CODES + 0.5,
            ["s"] * N,
            "source",
            3,
            CODES[:-1],
            CODES[:, None],
            CODES > 0,
            {},
        ),
    ),
]
MANY = values(
    [1] * N,
    np.ones(N),
    np.arange(N),
    2.0,
    None,
    torch.ones(N),
    wrong=(-np.ones(N), np.zeros(N), np.ones(N - 1), "a", {}, np.ones((N, 2)), 0.0, -1.0),
)
WEIGHTS_OF_ROWS = [*(kind for kind in arrays(N, none=True) if kind.name not in ("one number", "no axis")), *MANY]
METHOD = choices("kulsif", "kmm", "logistic")
ALPHA = values(0, 0.1, 0.9, wrong=(1, -0.1, *OTHER))


WEIGH = [kind for kind in arrays(8, none=True) if kind.name not in ("one number", "no axis")]


def shift_is_sound(found: adapt.Shift, given: dict[str, Any]) -> None:
    finite({"X": found.X, "weight": found.weight, "y": found.y[found.labelled]})
    assert len(found.X) == len(found.y) == len(found.domain) == len(found.weight)
    found.remarks()


def weights_are_sound(w: torch.Tensor, given: dict[str, Any]) -> None:
    finite(w)
    assert bool((w >= 0).all())
    assert len(w) == len(given["X_source"])


class Mean:
    """The mean of y."""

    def __init__(self, more=0.0):
        self.more = more

    def get_params(self, deep=True):
        return {"more": self.more}

    def fit(self, X, y):
        self.mean = np.nanmean(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.mean + self.more)


ESTIMATOR = values(Mean(), Mean(1e8), wrong=(None, 3, "ridge", Mean, Mean(math.nan)))
ADAPT = [
    Call(
        "from_domains",
        adapt.Shift.from_domains,
        lambda: {"X": rows(N, 2), "y": y_of(), "sample_domain": CODES},
        {
            "X": arrays(N, 2),
            "y": [*GAPS, *arrays(N, 2)[:30]],
            "sample_domain": CODE,
            "sample_weight": WEIGHTS_OF_ROWS,
            "names": values(None, ["a", "b"], ("a", "b"), wrong=(["a"], [], 3, "abc")),
        },
        shift_is_sound,
    ),
    Call(
        "from_arrays",
        adapt.Shift.from_arrays,
        lambda: {"X_source": rows(8, 2), "y_source": rows(8, 1)[:, 0], "X_target": rows(6, 2, 1)},
        {
            "X_source": [*arrays(8, 2), *values(None, wrong=([[]], [rows(8, 2), rows(8, 3)]))],
            "y_source": arrays(8),
            "X_target": arrays(6, 2),
            "y_target": [kind for kind in arrays(6, none=True) if kind.name not in ("nan", "nan tensor", "masked")],
            "X_unlabelled": arrays(3, 2, none=True),
            "sample_weight": WEIGHTS_OF_ROWS,
        },
        shift_is_sound,
        also=("y",),
    ),
    Call(
        "importance_weights",
        adapt.importance_weights,
        lambda: {"X_source": rows(8, 2), "X_target": rows(6, 2, 1)},
        {
            "X_source": arrays(8, 2),
            "X_target": arrays(6, 2),
            "method": METHOD,
            "width": [*POSITIVE[1:], *values(None)][:10],
            "ridge": [*POSITIVE, *values(None)][:10],
            "alpha": ALPHA,
            "normalise": values(True, False),
            "seed": SEEDS,
        },
        weights_are_sound,
        also=("K",),
    ),
    Call(
        "importance by kmm",
        adapt.importance_weights,
        lambda: {"X_source": rows(8, 2), "X_target": rows(6, 2, 1), "method": "kmm"},
        {"X_source": arrays(8, 2), "X_target": arrays(6, 2)},
        weights_are_sound,
    ),
    Call(
        "importance by logistic",
        adapt.importance_weights,
        lambda: {"X_source": rows(8, 2), "X_target": rows(6, 2, 1), "method": "logistic"},
        {"X_source": arrays(8, 2), "X_target": arrays(6, 2), "ridge": POSITIVE},
        weights_are_sound,
    ),
    *(
        Call(
            made.__name__,
            made,
            lambda: {"estimator": Mean(), "X": rows(N, 2), "y": y_of(), "sample_domain": CODES},
            {"estimator": ESTIMATOR, "X": arrays(N, 2), "y": GAPS, "sample_domain": CODE, **more},
            all_finite,
        )
        for made, more in (
            (
                adapt.importance_weighted_cv,
                {
                    "folds": values(2, 8, wrong=(0, 1, 9, True, 1.5, None, "a")),
                    "weights": WEIGH,
                    "method": METHOD,
                    "alpha": ALPHA,
                    "seed": SEEDS,
                },
            ),
            (
                adapt.deep_embedded_validation,
                {
                    "folds": values(2, 8, wrong=(0, 1, 9, True, 1.5, None, "a")),
                    "weights": WEIGH,
                    "seed": SEEDS,
                    "features": values(
                        None,
                        lambda made, X: X,
                        wrong=(3, "a", lambda made, X: None, lambda made, X: [1], lambda made, X: np.full((len(X), 1), math.nan)),
                    ),
                },
            ),
            (adapt.circular_validation, {}),
        )
    ),
]


def regress(made: type, **given: Any) -> tuple[Any, ...]:
    """Fit with some parameters, and predict."""
    X_test, fitted = (
        given.pop("X_test"),
        {name: given.pop(name) for name in ("X", "y", "sample_domain", "sample_weight") if name in given},
    )
    found = made(**given).fit(**fitted)
    mean, std = found.predict(X_test, return_std=True)
    return found, mean, std, found.predict(X_test, return_cov=True)[1]


def regression_is_sound(result: tuple[Any, ...], given: dict[str, Any]) -> None:
    _, mean, std, cov = result
    finite({"mean": np.asarray(mean), "std": np.asarray(std), "cov": np.asarray(cov)})
    assert len(mean) == len(std) == len(cov)
    assert bool((np.asarray(std) >= 0).all())


def estimator(made: type, **more: list[Kind]) -> Call:
    """Fit and predict of one class."""
    small = {name: 6 for name in ("base", "features") if name in made().get_params()}
    given = {"sample_domain": CODES, "X_test": rows(3, 2), "max_iter": 1, **small}
    kinds = {
        "X": arrays(N, 2),
        "y": [*GAPS, *arrays(N, 2)[:40]],
        "sample_domain": CODE,
        "sample_weight": WEIGHTS_OF_ROWS,
        "X_test": arrays(3, 2),
        "depth": values(0, 1, wrong=(-1, 1.5, "a", None)),
        "activation": choices("relu", "erf", "gelu"),
        "source_weight": values(0, 1, wrong=(-1, 2, *OTHER)),
        "max_iter": COUNTS,
        "random_state": SEEDS,
    }
    return Call(
        made.__name__,
        lambda **given: regress(made, **given),
        lambda: {"X": rows(N, 2), "y": y_of(), **given},
        kinds | more,
        regression_is_sound,
        others=("sklearn", "pandas"),
    )


FORM = choices("product", "cosine", "centred", "exponential")
APPROXIMATION = choices("auto", "exact", "inducing", "features")
ESTIMATORS = [
    estimator(adapt.TargetOnlyGP, approximation=APPROXIMATION),
    estimator(adapt.PooledGP, approximation=APPROXIMATION, features=COUNTS),
    estimator(adapt.TransferGPRegressor),
    estimator(adapt.ReweightedGP, weights=METHOD),
    estimator(adapt.MeanEmbeddingGP, form=FORM, base=COUNTS),
    estimator(adapt.DINOInitRegressor, form=FORM, rank=COUNTS, pull=NOT_NEGATIVE),
    estimator(adapt.DINOTrainRegressor, rule=choices("discrepancy", "sure", "gcv"), time=values(0, 1.0, math.inf, wrong=(-1, "a"))),
    estimator(
        adapt.AutoTransferRegressor,
        candidates=values(("target", "pooled"), ["dino"], wrong=((), "target", ["none"], 3)),
        combine=choices("stack", "best"),
        form=FORM,
        trained=values(True, False),
    ),
]
