"""Linearised fine-tuning: a network that is linear in its parameters, at the tangent of a pretrained one.

    f_lin(x; delta) = f(theta_0, x) + J(x) delta,        J(x) delta by one forward pass with tangents (torch.func.jvp)

Its tangent kernel is that of f at theta_0 wherever delta is, so gradient descent on the squared loss follows `gradient_flow` exactly,
and task vectors add up: f_lin(x; a + b) - f_0(x) = J(x) a + J(x) b (Ortiz-Jimenez, Favero and Frossard, 2023, eq. 4).

Equation (F29): docs/derivations/finetune.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from driftway.checks import InputError, kind
from driftway.finetune.taskvector import TaskVector
from driftway.kernels.tangent.outputs import Forward, forward
from driftway.kernels.tangent.scope import Scope, select
from driftway.params import contained


class Linearized(nn.Module):
    """f_0 + J delta, trainable in delta with any optimiser of torch.

    It holds a frozen copy of the model, always in evaluation mode. delta is in the order of `names`, and in single precision at least.
    Call it with a batch, or with the model's keywords: `linear(x)`, `linear(**tokens)`; it returns scores. Attention of any
    implementation is computed in a form that has tangents.

    Args:
        model: any module.
        scope: which parameters delta changes; see `tangent_features`.
        forward: (model, batch) -> tensor of scores; by default the model's output, or its logits.
        at: delta to begin with, of parameters in scope; zero by default, and for those it lacks.

    Raises:
        InputError: if nothing is in scope, or `at` has parameters that are not, or other shapes; in a call, if an operation has no
            forward derivative, such as torch's fused LSTM.
    """

    def __init__(self, model: nn.Module, *, scope: Scope = "all", forward: Forward = forward, at: TaskVector | None = None) -> None:
        super().__init__()
        chosen = select(model, scope)
        copied: Any = deepcopy(model)
        if getattr(getattr(copied, "config", None), "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
            copied.set_attn_implementation("eager")  # kernels of other libraries have no tangents
        self.base = _Read(copied.requires_grad_(False).eval(), forward)
        self.names = tuple(chosen)
        if at is not None:
            kind("at", at, TaskVector, "a task vector")
        start = {} if at is None else at.tensors
        contained("scope", chosen, "the task vector", start)
        self.delta = nn.ParameterList()
        for name, theta in chosen.items():
            wide = torch.zeros_like(theta, dtype=torch.promote_types(theta.dtype, torch.float32), requires_grad=False)
            self.delta.append(nn.Parameter(wide + start[name].to(wide) if name in start else wide))

    def train(self, mode: bool = True) -> "Linearized":
        """Set the mode; the network inside keeps to evaluation mode, so that it stays one function."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(self, batch: Any = None, **inputs: Any) -> Tensor:
        """f_0(x) + J(x) delta, in the shape of the scores."""
        own = dict(self.base.named_parameters())
        theta = {f"model.{name}": own[f"model.{name}"].detach() for name in self.names}
        delta = {f"model.{name}": d.to(theta[f"model.{name}"].dtype) for name, d in zip(self.names, self.delta, strict=True)}
        with _differentiable():
            f, Jd, *_ = jvp(lambda w: functional_call(self.base, w, (inputs if batch is None else batch,)), (theta,), (delta,))
        return f + Jd

    def task_vector(self) -> TaskVector:
        """delta, as it is now."""
        return TaskVector({name: d.detach().clone() for name, d in zip(self.names, self.delta, strict=True)})


class _Read(nn.Module):
    """A model and the reading of scores from it, as one module that can be called with other tensors."""

    def __init__(self, model: nn.Module, read: Forward) -> None:
        super().__init__()
        self.model, self.read = model, read

    def forward(self, batch: Any) -> Tensor:
        scores = self.read(self.model, batch)
        if not isinstance(scores, Tensor):
            raise InputError("forward", expected="a tensor of scores from the model", got=type(scores).__name__,
                             cure="pass forward=lambda model, batch: ... that returns one, e.g. model(**batch)[0][:, 0]")  # fmt: skip
        return scores


@contextmanager
def _differentiable() -> Iterator[None]:
    """Attention from its parts, in place of fused kernels that have no forward derivative."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except NotImplementedError as error:
        raise InputError("model", expected="operations with a forward derivative", got=f"one without ({str(error).split(' because')[0]})",
                         cure="replace that layer by one made of plain operations of torch") from error  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
