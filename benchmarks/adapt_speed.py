"""How the time of `driftway.adapt` grows with the rows: `python -m benchmarks.adapt_speed`.

Fit on n source rows and 50 labels of a target that differs in inputs and function, and prediction of 1,000 rows, one thread. Peers:
scikit-learn's Gaussian process while it is feasible, and its gradient boosting, both on all rows, with the domain as a column.

And the time of one evaluation of the objective with its gradient at n = 600, against a reconstruction of the research code: all kernels,
those of the base samples included, computed by whole matrices with a graph, six layers, in float32, with explicit inverses. It is ours,
written from a description; the code itself is not at hand.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
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
from driftway.adapt.dino_init import Settings, base_samples, first_stage, second_stage
from driftway.adapt.learn import attended, frame
from driftway.adapt.shift import Shift
from driftway.kernels import FullyConnected

SIZES, LABELS, TEST, COLUMNS = (600, 2000, 5000, 20_000, 50_000, 200_000), 50, 1000, 10
OURS = ("TransferGPRegressor", "DINOInitRegressor", "DINOTrainRegressor", "AutoTransferRegressor")
GP, BOOSTING, MOST_GP = "GP, domain as a column", "boosting, domain as a column", 2000
LINEAR = 20_000  # rows from which the time should grow like n
RESEARCH, TIMES = "reconstruction of the research code", 10.0
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
    kernel = ConstantKernel() * RBF(np.ones(COLUMNS + 1)) + WhiteKernel()
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


def research(n: int, seed: int) -> Callable[[], None]:
    """One evaluation with its gradient: kernel of rows and base samples anew, weights, explicit inverses."""
    X, y, domain, _, _ = problem(n - LABELS, seed)
    rows, labels, source = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), torch.tensor(domain > 0)
    bases = [rows[~source][:LABELS], rows[source][:100]]
    phi = torch.randn(8, COLUMNS, generator=torch.Generator().manual_seed(seed)).div(3).requires_grad_()
    v = torch.zeros(2, 16, requires_grad=True)
    free = [phi, v, *(torch.zeros(()).requires_grad_() for _ in range(4))]

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
        (r @ torch.linalg.inv(C) @ r + torch.logdet(C)).backward()

    return step


def ours(n: int, seed: int, depth: int = 6) -> Callable[[], int]:
    """The second stage of DINO-INIT, in float64 and with Cholesky factors: it returns how often the objective was evaluated."""
    X, y, domain, _, _ = problem(n - LABELS, seed)
    shift = Shift.from_domains(X, y, domain)
    settings = Settings(network=FullyConnected(depth, "relu", w_std=2**0.5, b_std=0.3), steps=20)
    first = first_stage(frame(shift), 1, replace(settings, steps=1))
    family = attended(base_samples(shift, first, settings), "cosine", rank=8, pull=0.1)
    return lambda: second_stage(first, family, settings).evaluations


def evaluation(n: int, repeats: int) -> Rows:
    """Seconds of one evaluation."""
    rows: Rows = []
    step, stage = research(n, 0), ours(n, 0)
    step()
    for name in (RESEARCH, "DINOInitRegressor"):
        taken = []
        for _ in range(repeats):
            began = time.process_time()
            calls = stage() if name != RESEARCH else max(len([step() for _ in range(5)]), 1)
            taken.append((time.process_time() - began) / calls)
        rows.append({"rows": n, "method": name, "seconds": median(taken)})
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
    calls, grown = evaluation(600, 1 if options.quick else 5), growth(sizes, methods)
    one, other = (row["seconds"] for row in calls)
    table = [[name, *(next((row[what] for row in grown if row["method"] == name and row["rows"] == n), None) for n in sizes)]
             for what in ("seconds", "error") for name in methods]  # fmt: skip
    goals = [Goal(f"At n = 600, an evaluation takes at most a tenth of that of the {RESEARCH}", ["its seconds", "ours", "ratio", "verdict"],
                  [[one, other, one / other, "met" if one >= TIMES * other else "not met"]])]  # fmt: skip
    far = [n for n in sizes if n >= LINEAR]
    if len(far) > 1:
        checks = []
        for name in OURS:
            seconds = [next(row["seconds"] for row in grown if row["method"] == name and row["rows"] == n) for n in far]
            slope = float(np.polyfit(np.log(far), np.log(seconds), 1)[0])
            checks.append([name, slope, "met" if slope <= 1.1 else "not met"])
        goals.append(Goal(f"From {LINEAR:,} rows on, time grows at most like n (slope of the logarithms 1.1 or less)",
                          ["method", "slope", "verdict"], checks))  # fmt: skip
    spent = [[row["method"], row["seconds"]] for row in calls]
    columns, half = ["method", *(f"{n:,} rows" for n in sizes)], len(methods)
    record = Record(
        name="adapt_speed", title="Time of adaptation against rows",
        command="python -m benchmarks.adapt_speed" + " --quick" * options.quick, complete=True,
        quick=options.quick, seeds=(0,),
        protocol={"columns": COLUMNS, "labels of the target": LABELS, "predicted": TEST, "threads": 1},
        notes=("Processor seconds of fit and prediction. Errors: root mean square against the truth, over its deviation.",
               f"The {RESEARCH} is written from a description of it."),
        figures={"growth": grown, "evaluation": calls}, goals=goals,
        tables=[Table("Seconds", columns, table[:half]), Table("Error", columns, table[half:]),
                Table("One evaluation with its gradient, n = 600", ["method", "seconds"], spent)],
    )  # fmt: skip
    write(record, options.json or (None if options.quick else RESULTS / "adapt_speed.json"))
    show(record)


if __name__ == "__main__":
    main()
