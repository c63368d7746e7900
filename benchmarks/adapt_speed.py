"""How the time of `driftway.adapt` grows with the rows: `python -m benchmarks.adapt_speed`.

Fit on n source rows and 50 labels of a target that differs in inputs and function, and prediction of 1,000 rows, one thread. Peers:
scikit-learn's Gaussian process while it is feasible, and its gradient boosting, both on all rows, with the domain as a column.

And the time of learning at n = 600, against a reconstruction of the research code: all kernels, those of the base samples included,
computed by whole matrices with a graph, six layers, in float32, with explicit inverses, in every step of Adam. It is ours, written from a
description; the code itself is not at hand. Which rows were its base samples is not known: both readings are timed. Ours are the two stages
of DINO-INIT of six layers, in float64 with Cholesky factors, and as many steps are counted for the other as ours evaluate the objective.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.record import RESULTS, Goal, Record, Table, show, write
from driftway import adapt
from driftway.adapt.dino_init import Settings, first_stage, weighted
from driftway.adapt.frame import frame
from driftway.adapt.shift import Shift
from driftway.kernels import FullyConnected

SIZES, LABELS, TEST, COLUMNS = (600, 2000, 5000, 20_000, 50_000, 200_000), 50, 1000, 10
OURS = ("TransferGPRegressor", "DINOInitRegressor", "DINOTrainRegressor", "AutoTransferRegressor")
GP, BOOSTING, MOST_GP = "GP, domain as a column", "boosting, domain as a column", 2000
LINEAR = 20_000  # rows from which the time should grow like n
RESEARCH, TIMES, BASE = "reconstruction of the research code", 10.0, {"100 base samples of a domain": 100, "all rows as base samples": None}
STAGES = ("DINOInitRegressor, all parameters", "DINOInitRegressor, weights of base samples")
Rows = list[dict[str, Any]]


def problem(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels, domains; test rows of the target, and their targets without noise."""
    generator = np.random.default_rng(seed)

    def f(X: np.ndarray) -> np.ndarray:
        return np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] ** 2 + X[:, 2] * X[:, 3]

    S, T = generator.normal(size=(n, COLUMNS)), generator.normal(size=(LABELS + TEST, COLUMNS)) + 0.5
    truth = 0.9 * f(T) + 0.5 * np.cos(T[:, 4])
    y = np.r_[f(S), truth[:LABELS]] + 0.3 * generator.normal(size=n + LABELS)
    return np.r_[S, T[:LABELS]], y, np.repeat([1, -2], [n, LABELS]), T[LABELS:], truth[LABELS:]


def fitted(name: str, X: np.ndarray, y: np.ndarray, domain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions of a method."""
    if name in OURS:
        return getattr(adapt, name)().fit(X, y, sample_domain=domain).predict(test)
    kernel = ConstantKernel() * RBF(np.ones(COLUMNS + 1)) + WhiteKernel()  # pyright: ignore[reportArgumentType] (one for each column)
    model: Any = GaussianProcessRegressor(kernel, normalize_y=True) if name == GP else HistGradientBoostingRegressor(random_state=0)
    known = np.c_[X, domain > 0]
    return model.fit(known, y).predict(np.c_[test, np.zeros(len(test))])


def growth(sizes: tuple[int, ...], methods: tuple[str, ...], seed: int = 0) -> Rows:
    """Seconds and error of every method at every size."""
    rows: Rows = []
    for n in sizes:
        X, y, domain, test, truth = problem(n, seed)
        for name in methods:
            if name == GP and n > MOST_GP:
                continue
            began = time.process_time()
            error = float(np.sqrt(np.mean((fitted(name, X, y, domain, test) - truth) ** 2)))
            rows.append({"rows": n, "method": name, "seconds": time.process_time() - began, "error": error / float(truth.std())})
    return rows


def relu(S: Tensor) -> Tensor:
    """NNGP of one ReLU layer, whole matrix."""
    d = S.diagonal().sqrt()
    cosine = (S / torch.outer(d, d)).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()
    return torch.outer(d, d) * (angle.sin() + (math.pi - angle) * cosine) / math.pi


def nngp(X: Tensor, depth: int = 6) -> Tensor:
    S = 2 * (X @ X.T) / X.shape[1] + 0.1
    for _ in range(depth):
        S = relu(S) + 0.1
    return S


def research(n: int, seed: int, most: int | None) -> Callable[[], None]:
    """One step: kernel of rows and of base samples, at most so many of a domain, anew, weights, explicit inverses, gradient, Adam."""
    X, y, domain, _, _ = problem(n - LABELS, seed)
    rows, labels, source = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), torch.tensor(domain > 0)
    bases = [rows[~source][:most], rows[source][:most]]
    phi = torch.randn(8, COLUMNS, generator=torch.Generator().manual_seed(seed)).div(3).requires_grad_()
    v = torch.zeros(2, 16, requires_grad=True)
    free = [phi, v, *(torch.zeros(()).requires_grad_() for _ in range(4))]
    adam = torch.optim.Adam(free, lr=1e-3)

    def step() -> None:
        K, B = nngp(rows * free[2].exp()), nngp(torch.cat(bases))
        left, weights = rows @ phi.T, torch.zeros(len(rows), len(B))
        start = 0
        for d, base in enumerate(bases):
            own = (source == bool(d)).nonzero()[:, 0]
            pairs = torch.cat([left[own][:, None].expand(-1, len(base), -1), (base @ phi.T)[None].expand(len(own), -1, -1)], 2)
            weights = weights.index_put((own[:, None], torch.arange(start, start + len(base))), (pairs @ v[d]).softmax(1))
            start += len(base)
        K = free[3].exp() * K * (weights @ B @ weights.T)
        s, t = source.nonzero()[:, 0], (~source).nonzero()[:, 0]
        inverse = torch.linalg.inv(K[s][:, s] + free[4].exp() * torch.eye(len(s)))
        mean = K[t][:, s] @ inverse @ labels[s]
        C = K[t][:, t] + free[5].exp() * torch.eye(len(t)) - K[t][:, s] @ inverse @ K[s][:, t]
        r = labels[t] - mean
        adam.zero_grad()
        (r @ torch.linalg.inv(C) @ r + torch.logdet(C)).backward()
        adam.step()

    return step


def ours(n: int, seed: int, depth: int = 6) -> list[tuple[str, float, int]]:
    """Seconds of both stages of DINO-INIT, and how often they evaluated the objective."""
    X, y, domain, _, _ = problem(n - LABELS, seed)
    shift = Shift.from_domains(X, y, domain)
    rows, settings = frame(shift), Settings(FullyConnected(depth, "relu", w_std=2**0.5, b_std=0.3), rank=8)
    began = time.process_time()
    first = first_stage(rows, 1, settings)
    between = time.process_time()
    second = weighted(shift, first, "cosine", settings)
    return [(STAGES[0], between - began, first.evaluations), (STAGES[1], time.process_time() - between, second.evaluations)]


def learning(n: int, repeats: int) -> Rows:
    """Seconds of one evaluation, and of learning as long as ours does."""
    stages = [ours(n, 0) for _ in range(repeats)]
    calls, rows = sum(count for _, _, count in stages[0]), []
    for place, name in enumerate(STAGES):
        seconds = median(found[place][1] for found in stages)
        rows.append({"method": name, "evaluations": stages[0][place][2], "one": seconds / stages[0][place][2], "all": seconds})
    for name, most in BASE.items():
        step, taken = research(n, 0, most), []
        step()
        for _ in range(4 * repeats):
            began = time.process_time()
            step()
            taken.append(time.process_time() - began)
        rows.append({"method": f"{RESEARCH}, {name}", "evaluations": calls, "one": median(taken), "all": calls * median(taken)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapt_speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows; less than 50 seconds on two cores")
    parser.add_argument("--json", type=Path, help="result file; the full run's default is benchmarks/results/adapt_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    warnings.simplefilter("ignore")
    sizes, methods = ((600,), (OURS[0], BOOSTING)) if options.quick else (SIZES, (*OURS, GP, BOOSTING))
    learned = learning(600, 1 if options.quick else 3)
    grown = growth(sizes, methods)
    table = [[name, *(next((row[what] for row in grown if row["method"] == name and row["rows"] == n), None) for n in sizes)]
             for what in ("seconds", "error") for name in methods]  # fmt: skip
    mine, checks = sum(row["all"] for row in learned[:2]), []
    for row in learned[2:]:
        checks.append([row["method"], row["all"], mine, row["all"] / mine, "met" if row["all"] >= TIMES * mine else "not met"])
    goals = [Goal(f"At n = 600, DINO-INIT learns in a tenth of the time of the {RESEARCH}, for as many evaluations",
                  ["against", "its seconds", "ours", "ratio", "verdict"], checks)]  # fmt: skip
    far = [n for n in sizes if n >= LINEAR]
    if len(far) > 1:
        checks = []
        for name in OURS:
            seconds = [next(row["seconds"] for row in grown if row["method"] == name and row["rows"] == n) for n in far]
            slope = float(np.polyfit(np.log(far), np.log(seconds), 1)[0])
            checks.append([name, slope, "met" if slope <= 1.1 else "not met"])
        goals.append(Goal(f"From {LINEAR:,} rows on, time grows at most like n (slope of the logarithms 1.1 or less)",
                          ["method", "slope", "verdict"], checks))  # fmt: skip
    spent = [[row["method"], row["evaluations"], row["one"], row["all"]] for row in learned]
    columns, half = ["method", *(f"{n:,} rows" for n in sizes)], len(methods)
    record = Record(
        name="adapt_speed", title="Time of adaptation against rows",
        command="python -m benchmarks.adapt_speed" + " --quick" * options.quick, complete=True,
        quick=options.quick, seeds=(0,),
        protocol={"columns": COLUMNS, "labels of the target": LABELS, "predicted": TEST, "threads": 1},
        notes=("Processor seconds of fit and prediction. Errors: root mean square against the truth, over its deviation.",
               "Parameters are learned on 1,000 rows at most; up to 5,000 labelled rows all are then conditioned on (1,500 for trained "
               "networks), and beyond, those far from the target are summarised by 1,000 features.",
               f"The {RESEARCH} is written from a description of it. It is timed by the step, in float32; ours is in float64."),
        figures={"growth": grown, "learning": learned}, goals=goals,
        tables=[Table("Seconds", columns, table[:half]), Table("Error", columns, table[half:]),
                Table("Learning, n = 600", ["method", "evaluations", "seconds of one", "of all"], spent)],
    )  # fmt: skip
    write(record, options.json or (None if options.quick else RESULTS / "adapt_speed.json"))
    show(record)


if __name__ == "__main__":
    main()
