"""The Jacobian of a network, slow and obvious: one backward pass for each sample and output, everything flattened."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

DOUBLE = torch.float64


def rows_of(batch: Any) -> list[Any]:
    """The samples of a batch, each a batch of its own. Entries of one row go to every sample."""
    if isinstance(batch, Tensor):
        return list(batch.split(1))
    n = max(len(entry) for entry in batch.values())
    return [{name: entry[i : i + 1] if len(entry) == n else entry for name, entry in batch.items()} for i in range(n)]


def call(model: nn.Module, batch: Any) -> Tensor:
    out = model(**{k: v for k, v in batch.items() if k != "labels"}) if isinstance(batch, Mapping) else model(batch)
    return getattr(out, "logits", out)


def jacobian(model: nn.Module, batches: Any, names: Iterable[str] | None = None, *,
             forward: Callable[[nn.Module, Any], Tensor] = call) -> Tensor:  # fmt: skip
    """(n, outputs, P), parameters in the model's order, tied ones once; of a list of batches one after the other."""
    wanted = None if names is None else set(names)
    parameters = [p for name, p in model.named_parameters() if wanted is None or name in wanted]
    frozen = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_()
    J = []
    for batch in batches if isinstance(batches, list) else [batches]:
        for row in rows_of(batch):
            scores = forward(model, row).reshape(-1)
            J.append(torch.stack([_gradient(score, parameters) for score in scores]))
    for p, flag in zip(parameters, frozen, strict=True):
        p.requires_grad_(flag)
    return torch.stack(J)


def trace_gram(J: Tensor, L: Tensor | None = None) -> Tensor:
    """Inner products summed over outputs."""
    return torch.einsum("icp,jcp->ij", J, J if L is None else L)


def _gradient(score: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    if not score.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    found = torch.autograd.grad(score, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([g.to_dense().flatten() for g in found])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def shaken(model: nn.Module) -> nn.Module:
    """The model in double precision and evaluation mode, every number away from its special first value, and the same at every call."""
    model, generator = model.double().eval(), torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=DOUBLE, generator=generator)

    with torch.no_grad():
        for p in model.parameters():
            centre = p.mean() if p.min() == p.max() else torch.zeros(())  # the ones of norms stay about one
            p.copy_(centre + noise(p) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
        for name, b in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.add_(noise(b).square())
    return model
