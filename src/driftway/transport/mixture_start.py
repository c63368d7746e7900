"""Where the components of a mixture start: on a clustering of optimally paired rows."""

import warnings

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from driftway.transport.forms import times
from driftway.transport.metrics import exact_coupling
from driftway.transport.mixture import MixtureValue
from driftway.transport.problem import cost
from driftway.transport.stream import generator


@torch.no_grad()
def initialise(value: MixtureValue, x: Tensor, y: Tensor, *, seed: int) -> None:
    """Place the components on a clustering of optimally paired rows.

    In each cell the component is the Gaussian map from its source rows to its target rows, at the level of the Brenier potential that
    the exact dual gives there. Components beyond the rows split others.

    Args:
        value: the mixture whose parameters are set.
        x: source rows, (n, *event).
        y: target rows, (n, *event).
        seed: of the clustering.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    match = exact_coupling(cost(x, y))
    y = match.map(y)
    phi = x.square().sum(1) / 2 - match.f
    K, d = min(len(value.u), len(x)), value.r.shape[1]
    spread = x.var(0).mean().clamp_min(1e-12), y.var(0).mean().clamp_min(1e-12)
    pairs = torch.cat([x / spread[0].sqrt(), y / spread[1].sqrt()], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster: its component starts on a pair of its own below
        _, label = kmeans2(pairs.cpu().numpy(), K, minit="points", rng=np.random.default_rng(seed), missing="warn")
    cell = torch.as_tensor(label, device=x.device).long()
    cells = [rows if len(rows) else torch.tensor([k % len(x)]) for k, rows in enumerate(torch.nonzero(cell == j)[:, 0] for j in range(K))]
    full = value.lower is not None
    for k, rows in enumerate(cells):
        dof = d if full else 1
        prior = (dof + 1) / (dof + 1 + len(rows))
        eye = torch.eye(d).to(x) if full else torch.ones(d).to(x)
        cx = _covariance(x[rows], full) + (prior * spread[0] + 1e-6) * eye
        cy = _covariance(y[rows], full) + 1e-4 * spread[1] * eye
        S = _gaussian_map(cx, cy)
        r = y[rows].mean(0) - times(S[None], x[rows].mean(0)[None])[0]
        value.r[k] = r
        L = torch.linalg.cholesky(S) if full else S.sqrt().diag_embed()
        value.log_diagonal[k] = L.diagonal().log()
        if value.lower is not None:
            value.lower[k] = L.tril(-1)
        value.u[k] = (phi[rows] - (x[rows] * times(S[None], x[rows])).sum(1) / 2 - x[rows] @ r).mean()
    if len(value.u) > K:
        _split(value, K, generator(seed, "split"))


def _split(value: MixtureValue, K: int, own: torch.Generator) -> None:
    """Fill the components from K on with copies of the first K, moved by their own noise, and share the weights out."""
    parent = torch.arange(len(value.u), device=value.u.device) % K
    for parameter in value.parameters():
        parameter.copy_(parameter[parent])
    value.u.sub_(value.eps * parent.bincount()[parent].log())
    noise = value.eps.sqrt() * torch.randn(len(value.u) - K, value.r.shape[1], generator=own).to(value.r)
    value.r[K:] += times((value.L if value.lower is not None else value.S.sqrt())[K:], noise)


def _covariance(x: Tensor, full: bool) -> Tensor:
    """The covariance of the rows, or the variances of their columns."""
    centred = x - x.mean(0)
    return centred.T @ centred / len(x) if full else centred.square().mean(0)


def _gaussian_map(cx: Tensor, cy: Tensor) -> Tensor:
    """The matrix S of the optimal map between Gaussians, S cx S = cy, plus a hundredth."""
    if cx.ndim == 1:
        return (cy / cx).sqrt() + 1e-2
    root = _root(cx)
    inverse = torch.linalg.inv(root)
    return inverse @ _root(root @ cy @ root) @ inverse + 1e-2 * torch.eye(len(cx)).to(cx)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    s, U = torch.linalg.eigh(matrix)
    return (U * s.clamp_min(0).sqrt()) @ U.mT
