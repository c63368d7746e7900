"""Models whose map is known: x -> x + r, by a mixture of one component."""

from dataclasses import replace

import torch

from driftway.transport import Conditions, MixtureValue, Problem, TransportModel
from driftway.transport.labelled import LabelledMixture
from driftway.transport.scaler import Scaler

TRAINING = {
    "steps": 300, "seconds": 3.0, "seed": 0, "eps": 1e-4, "settings": {"mixture_lr": 0.01, "lr": 0.005},
    "history": [[100, 1.0, 0.1, 0.9, 0.0], [200, 2.0, 0.3, 0.6, 0.0], [300, 3.0, 0.5, 0.525, 0.0]],
}  # fmt: skip


def rows(n, *event, seed=0):
    return torch.randn(n, *event, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def translation(r, event=None, *, noise=False, shift=0.0, scale=1.0, sigma=0.0, training=TRAINING):
    r = torch.as_tensor(r, dtype=torch.float64).flatten()
    d = len(r)
    value = MixtureValue((d,), components=1, eps=1e-16).double().requires_grad_(False)
    value.r.copy_(r[None])
    one = torch.ones(d, dtype=torch.float64)
    scaler = Scaler(tuple(event or (d,)), noise, shift * one, scale * one, torch.zeros(d, dtype=torch.bool))
    return TransportModel(value, Problem(sigma=sigma), scaler, "mixture", {"components": 1}, training)


def labelled_translation(moves, event=None, *, noise=False):
    """x -> x + r with an r for each label, and x -> x without one."""
    whole = translation(torch.zeros(len(next(iter(moves.values())))), event, noise=noise)
    value = LabelledMixture(whole.value_function.event, components=1, classes=len(moves), eps=1e-16).double().requires_grad_(False)
    for c, r in enumerate(moves.values()):
        value.part(c).r.copy_(torch.as_tensor(r).double()[None])
    shape, conditions = {"components": 1, "classes": len(moves)}, Conditions(classes=tuple(moves))
    return replace(whole, value_function=value, shape=shape, conditions=conditions)
