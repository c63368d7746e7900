"""How layers turn what they were given, x, and the gradient of the score with respect to what they gave, b, into parameter gradients.

    Linear       y = W x + u              dW = b x^T                 du = sum_s b_s
    convolution  y = W * x + u            the same, with the patches of x for x and places for positions s
    Embedding    y = E[i]                 dE[i] = b
    norms        y = w z(x) + u           dw = sum_s b_s z_s         du = sum_s b_s

Rules are tested against autograd before they are used (`capture.py`). A layer without a rule costs one gradient for each sample.

Equation (K20): docs/derivations/kernels.md.
"""

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from driftway.kernels.tangent.assemble import outer, scatter
from driftway.kernels.tangent.factors import Direct, Outer, Rows

Made = Direct | Outer | Rows
Rule = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Made]]


def rule_for(module: nn.Module) -> Rule | None:
    """The rule for what a module computes, or None. A subclass with a forward of its own has none."""
    for kind, rule in RULES:
        if type(module).forward is kind.forward:
            return rule
    name = type(module).__name__  # layers of other libraries
    if (name.endswith("RMSNorm") or name == "T5LayerNorm") and hasattr(module, "weight"):
        return _rms_norm
    return _swapped_linear if name == "Conv1D" and not isinstance(module, nn.Conv1d) else None


def _linear(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    left, right = _positions(b), _positions(x)
    return {"weight": outer(left[:, None], right[:, None]), "bias": Direct(left.sum(1)[..., None])}


def _swapped_linear(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    """GPT-2's linear layer, whose weight is (inputs, outputs)."""
    left, right = _positions(x), _positions(b)
    return {"weight": outer(left[:, None], right[:, None]), "bias": Direct(right.sum(1)[..., None])}


def _convolution(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)  # noqa: S101 (for the type checker: RULES sends nothing else here)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, list(module._reversed_padding_repeated_twice), mode=mode)
    flat = isinstance(module, nn.Conv1d)  # a line is an image of height 1
    kernel, dilation, stride = ((1,) * flat + sizes for sizes in (module.kernel_size, module.dilation, module.stride))
    patches = functional.unfold(x.unsqueeze(2) if flat else x, kernel, dilation, 0, stride)  # (n, channels window, places)
    n, groups = len(x), module.groups
    left = b.reshape(n, groups, b.shape[1] // groups, -1).mT
    right = patches.view(n, groups, -1, patches.shape[2]).mT
    return {"weight": outer(left, right), "bias": Direct(b.flatten(2).sum(2)[..., None])}


def _embedding(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    assert isinstance(module, nn.Embedding)  # noqa: S101 (for the type checker)
    index, unused = x.reshape(len(x), -1), module.padding_idx
    index = index if unused is None else index.where(index != unused, -1)
    return {"weight": scatter(index, _positions(b), module.num_embeddings)}


def _layer_norm(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    shape, eps = list(module.normalized_shape), float(module.eps)  # type: ignore[arg-type]
    return _last_axes(functional.layer_norm(x, shape, eps=eps), b, len(shape))


def _torch_rms_norm(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    shape = list(module.normalized_shape)  # type: ignore[arg-type]
    return _last_axes(functional.rms_norm(x, shape, eps=module.eps), b, len(shape))  # type: ignore[arg-type]


def _rms_norm(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
    return _last_axes(functional.rms_norm(x, [x.shape[-1]], eps=eps), b, 1)


def _last_axes(z: Tensor, b: Tensor, axes: int) -> dict[str, Made]:
    shape = z.shape[z.ndim - axes:]
    by_row = [a.reshape(len(z), -1, *shape).sum(1).reshape(len(z), shape[0], -1) for a in (b * z, b)]
    return {"weight": Direct(by_row[0]), "bias": Direct(by_row[1])}


def _batch_norm(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    z = functional.batch_norm(x, module.running_mean, module.running_var, eps=float(module.eps))  # type: ignore[arg-type]
    return _channels(z, b)


def _group_norm(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Made]:
    return _channels(functional.group_norm(x, int(module.num_groups), eps=float(module.eps)), b)  # type: ignore[arg-type]


def _channels(z: Tensor, b: Tensor) -> dict[str, Made]:
    def by_row(a: Tensor) -> Direct:
        return Direct(a.reshape(*a.shape[:2], -1).sum(2)[..., None])

    return {"weight": by_row(b * z), "bias": by_row(b)}


def _positions(a: Tensor) -> Float[Tensor, "n T c"]:
    """All axes between the first and the last as one."""
    return a.reshape(len(a), -1, a.shape[-1])


RULES: tuple[tuple[type[nn.Module], Rule], ...] = (
    (nn.Linear, _linear), (nn.Conv1d, _convolution), (nn.Conv2d, _convolution), (nn.Embedding, _embedding), (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _torch_rms_norm), (nn.GroupNorm, _group_norm), (nn.BatchNorm2d, _batch_norm),
)  # fmt: skip
