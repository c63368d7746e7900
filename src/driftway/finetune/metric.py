"""The kernel by which an optimizer moves scores: what it does to gradients before it steps.

    gradient   sum_p <g_p, g_p'>              gradient descent
    adam       sum_p w_p <g_p, g_p'>          Adam: one number for each tensor p,  w_p = 1 / (mean of v_p)^(1/2)
    sign       c sum_p <sign g_p, sign g_p'>  other optimizers that divide by the size of gradients (Malladi et al., 2023, without sizes)

v is the mean square of the gradients of batches at the start. With one v for each number, as Adam has it, the kernel would lose what rows
share: single entries of v are mostly noise; one for each tensor follows Adam's path more closely (and trains as well: Zhang et al., 2024).
Adam moves scores by w K u / n for each unit of learning rate. As gradients shrink, v follows and time runs faster, by

    pace = sum_p size_p v_0p / (v_tp)^(1/2)  /  sum_p size_p (v_0p)^(1/2)

The kernel of signs has no unit of time: c makes the loss begin to fall as fast as under Adam. With G the gradient on all rows,

    rate of Adam = sum_p G_p^2 / v_p^(1/2)        rate of the kernel = u.K u / n^2        c = their ratio

Equations (F23), (F24), (F26): docs/derivations/finetune.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import InputError
from driftway.kernels.tangent import tangent_gram
from driftway.kernels.tangent.batches import convert
from driftway.kernels.tangent.outputs import forward
from driftway.kernels.tangent.scope import Scope, select

METRICS = ("gradient", "adam", "sign")
TINY = 1e-12


def metric_of(optimizer: Any) -> str:
    """The metric of an optimizer: "adam" for Adam, AdamW, NAdam and others of that name, but not Adamax, whose v is a maximum."""
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.SGD):
        return "gradient"
    return "adam" if "Adam" in name and "Adamax" not in name and "betas" in optimizer.param_groups[0] else "sign"


def spread(K: Float[Tensor, "m m"]) -> float:
    """tr(C K C)."""
    return float(K.trace() - K.mean() * len(K))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


def raw_kernel(model: nn.Module, batches: Sequence[Mapping[str, Any]], *, scope: Scope = "trainable", metric: str = "gradient",
               weights: Mapping[str, float] | None = None, classes: bool = True) -> Float[Tensor, "n n"]:  # fmt: skip
    """The kernel before factors of the loss and of time, summed over scores; for classes of the contrast f_1 - f_0, or of centred scores.

    Args:
        model: the network.
        batches: inputs.
        scope: what is trained.
        metric: of the optimizer.
        weights: w by name, for "adam".
        classes: whether scores are those of classes.
    """
    with evaluating(model):
        return tangent_gram(model, [dict(part) for part in batches], scope=scope, forward=contrast if classes else forward,
                            sign="both" if metric == "sign" else "none", weights=weights if metric == "adam" else None)  # fmt: skip


def scores(model: nn.Module, part: Mapping[str, Any]) -> Float[Tensor, "n k"]:
    """One row of scores for each example.

    Raises:
        InputError: if the model gives something else.
    """
    weight = next(model.parameters())
    out = forward(model, convert({name: entry for name, entry in part.items() if name not in ("label", "labels")},
                                 weight.dtype, weight.device))  # fmt: skip
    if not isinstance(out, Tensor) or out.ndim not in (1, 2):
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise InputError("model", expected="one row of scores for each example", got=got,
                         cure="use a model that scores whole rows, e.g. AutoModelForSequenceClassification")  # fmt: skip
    return out if out.ndim == 2 else out[:, None]


def contrast(model: nn.Module, batch: Any) -> Tensor:
    """f_1 - f_0 of two classes, centred scores of more."""
    out = forward(model, batch)
    return out[:, 1] - out[:, 0] if out.shape[1] == 2 else out - out.mean(1, keepdim=True)


def gradients(model: nn.Module, batches: Sequence[Mapping[str, Any]], u: Tensor, *, scope: Scope, batch: int,
              classes: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """G = sum_i u_i g_i / n, and the mean square of the same sum over `batch` rows at a time, by name."""
    chosen = select(model, scope)
    parameters = list(chosen.values())
    mean, square, part = ([torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters] for _ in range(3))
    done, n = 0, len(u)
    for rows in batches:
        with evaluating(model), torch.enable_grad():
            f = contrast(model, convert(dict(rows), parameters[0].dtype, parameters[0].device)) if classes else scores(model, rows)
            own, first = (u[done : done + len(f)].to(f) * f.reshape(len(f), *u.shape[1:])).reshape(len(f), -1).sum(1), done
            while done < first + len(f):  # as many rows as the pass and the batch both have left
                start, done = done, min(first + len(f), done - done % batch + batch)
                found = torch.autograd.grad(own[start - first : done - first].sum(), parameters, allow_unused=True,
                                            retain_graph=done < first + len(f))  # fmt: skip
                for total, gradient in zip(part, found, strict=True):
                    total += 0 if gradient is None else gradient
                if done % batch and done < n:
                    continue
                for m, s, g in zip(mean, square, part, strict=True):
                    m += g / n
                    s += g.square() / ((done - 1) % batch + 1) / n
                    g.zero_()
    return dict(zip(chosen, mean, strict=True)), dict(zip(chosen, square, strict=True))


def root_mean_squares(square: Mapping[str, Tensor]) -> dict[str, float]:
    """(mean of v_p)^(1/2), by name; 0 for tensors without gradients, such as half of LoRA's at the start."""
    found = {name: float(v.double().mean().sqrt()) for name, v in square.items()}
    largest = max(found.values())
    return {name: root if root > TINY * largest else 0.0 for name, root in found.items()}


def inverse(roots: Mapping[str, float]) -> dict[str, float]:
    """w_p, by name; tensors without gradients yet get the least of the others."""
    found = {name: 1 / root for name, root in roots.items() if root > 0}
    return {name: found.get(name, min(found.values(), default=1.0)) for name in roots}


def speed(mean: Mapping[str, Tensor], square: Mapping[str, Tensor], u: Tensor, K: Float[Tensor, "n n"]) -> float:
    """c."""
    adam = sum(float((mean[name].square() / v.sqrt().clamp_min(TINY)).sum()) for name, v in square.items())
    columns = u.double().reshape(len(u), -1)
    return adam * len(u) ** 2 / max(float((columns * (K @ columns)).sum()), 1e-300)


def pace(optimizer: Any, names: Mapping[int, str], reference: Mapping[str, float]) -> float:
    """How much faster than at the start time runs under Adam; 1 before its first step.

    Args:
        optimizer: Adam or one of its kin.
        names: of parameters, by id.
        reference: (mean of v_p)^(1/2) at the start, in the units of the loss.
    """
    sizes, roots, seen = [], [], []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state, root = optimizer.state.get(p), reference.get(names.get(id(p), ""))
            if state and root and "exp_avg_sq" in state:
                sizes.append(p.numel())
                roots.append(root)
                seen.append(state["exp_avg_sq"].float().mean() / (1 - group["betas"][1] ** float(state["step"])))
    now = start = 0.0
    for size, root, v in zip(sizes, roots, torch.stack([v.to(seen[0]) for v in seen]).tolist() if seen else [], strict=True):
        if v > 0:
            now, start = now + size * root**2 / v**0.5, start + size * root
    return now / start if start > 0 else 1.0
