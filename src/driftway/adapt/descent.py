"""Training of the distribution-informed network as its limits have it: gradient descent on all rows at once.

    L(theta) = (1/2n) sum_i c_i |f(x_i) - y_i|^2 + (s/2n) |theta - theta_0|^2,    theta <- theta - lr grad L

Step k is the time t = k lr. At infinite width and c = 1, f_t is that of `kernels.gradient_flow` with the kernel Theta (K, where the readout
alone is trained), the start f_0 and the ridge s (Lee et al., 2019, eq. 8-11). Noise of variance s_i in row i is c_i = 1/s_i with s = 1.
f_0 is random and stays in f: the mean over networks is the prediction, and their spread its uncertainty.

Equation (A12): docs/derivations/adapt.md.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from driftway.adapt.network import DistributionNetwork
from driftway.checks import choice, count, real, require, same_dtype

SCOPES = ("readout", "all")


def train(network: DistributionNetwork, x: Tensor, domain: int | Tensor, y: Tensor, *, steps: int, lr: float | int | None = None,
          scope: str = "all", weights: Tensor | None = None, ridge: float | int = 0.0) -> Iterator[tuple[int, float]]:  # fmt: skip
    """Train a network in place: yields (step, L), before the first step (as step 0) and after each one, when it can be evaluated.

    Args:
        network: what is trained.
        x: (n, d) rows.
        domain: of the rows, 0 the target; one, or (n,).
        y: (n,) or (n, k) targets.
        steps: their number.
        lr: step size; by default that of `step_size`.
        scope: "readout", the last layer, or "all", every parameter that requires a gradient.
        weights: (n,) c >= 0; ones if None.
        ridge: s.

    Raises:
        InputError: if an argument is none of these; at a step, if L is not finite.
    """
    choice("scope", scope, SCOPES)
    count("steps", steps, least=0)
    same_dtype("base", network.base, "y", y)
    shape = len(x), network.readout.shape[1]
    require(tuple(y.shape) == shape or (y.ndim, len(y), shape[1]) == (1, len(x), 1), "y", expected=f"shape {shape}",
            got=f"shape {tuple(y.shape)}", cure="pass one row of targets for each row of x, one column for each output")  # fmt: skip
    require(bool(y.isfinite().all()), "y", expected="finite numbers", got="NaN or inf", cure="drop such rows")
    c, s = _weights(weights, y), real("ridge", ridge, least=0)
    eta = step_size(network, x, domain, scope=scope, weights=weights, ridge=s) if lr is None else real("lr", lr, least=0)
    return _descent(network, x, domain, y.reshape(shape), c[:, None], s, steps, eta, scope)


def step_size(network: DistributionNetwork, x: Tensor, domain: int | Tensor, *, scope: str = "all", weights: Tensor | None = None,
              ridge: float | int = 0.0) -> float:  # fmt: skip
    """1 / (the largest eigenvalue of the Hessian of L at infinite width, or a bound on it); descent needs less than twice that.

    Raises:
        InputError: as for `train`.
    """
    limits = network.limit_kernels(x, domain)
    K = limits.nngp if choice("scope", scope, SCOPES) == "readout" else limits.ntk
    root = _weights(weights, K[0]).sqrt()
    return len(K) / (float((root[:, None] * K * root).abs().sum(1).max()) + real("ridge", ridge, least=0))


def _descent(network: DistributionNetwork, x: Tensor, domain: int | Tensor, y: Tensor, c: Tensor, s: float, steps: int, lr: float,
             scope: str) -> Iterator[tuple[int, float]]:  # fmt: skip
    last = scope == "readout"
    features = network.features(x, domain).detach() if last else None
    theta = [network.readout] if last else [p for p in network.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in theta] if s else []
    for step in range(steps + 1):
        f = network(x, domain) if features is None else network.read(features)
        loss = (c * (f - y).square()).sum() / (2 * len(y))
        away = sum(((p - p0).square().sum() for p, p0 in zip(theta, start, strict=bool(s))), y.new_zeros(()))
        loss = loss + s / (2 * len(y)) * away
        value = loss.item()
        require(value < float("inf"), "lr", expected="steps that keep the loss finite", got=f"{value} at step {step} with lr={lr:g}",
                cure="pass a smaller lr, or a wider network with the lr of step_size")  # fmt: skip
        gradients = torch.autograd.grad(loss, theta, materialize_grads=True) if step < steps else ()
        yield step, value
        with torch.no_grad():
            for p, gradient in zip(theta, gradients, strict=False):
                p.sub_(gradient, alpha=lr)


def _weights(weights: Tensor | None, like: Tensor) -> Tensor:
    """Weights of the rows, in the dtype of another tensor.

    Raises:
        InputError: if they are not finite numbers >= 0, one for each row.
    """
    if weights is None:
        return like.new_ones(len(like))
    require(weights.shape == (len(like),) and bool((weights.isfinite() & (weights >= 0)).all()), "weights",
            expected=f"{len(like)} finite numbers >= 0", got=weights, cure="pass one for each row")  # fmt: skip
    return weights.to(like)
