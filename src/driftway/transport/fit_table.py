"""Optimal assignment of a law to the rows of a data set, as a model: the semidiscrete solver in the clothes of `fit`."""

import time
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from driftway import checks
from driftway.checks import require
from driftway.transport.families import build_value
from driftway.transport.intake import Data, Mapped, normal_stream, open_stream
from driftway.transport.model import TransportModel
from driftway.transport.problem import Problem
from driftway.transport.scaler import MODES, Scaler, fit_scaler
from driftway.transport.semidiscrete import ascend
from driftway.transport.stream import Batch, Rows, Stream
from driftway.transport.table import TableValue

FAMILY, FIRST_CHECK = "table", 64


def fit_table(source: Data | None, y: Float[Tensor, "m *event"] | Any, *, eps: float = 0.0, tolerance: float = 0.02,
              batch: int = 1024, max_steps: int = 20_000, seed: int = 0, standardize: str = "auto",
              start: TransportModel | None = None) -> TransportModel:  # fmt: skip
    """Transport a source onto the rows of y, every one of which takes its equal share.

    The ends of all paths are rows of y (with eps = 0 the cheapest assignment, else a draw from the entropic plan). So this is
    optimal assignment and resampling; it makes no new samples, as the families of `fit` do.

    Args:
        source: samples (n, *event) as an array, a sampler `f(n, generator)` or `f(n)`, a DataLoader, or None for the standard normal.
        y: (m, *event) rows of the target; their dtype and device are the model's.
        eps: entropy, in the units of the data; 0 for optimal transport.
        tolerance: the marginal error to reach: the mass, out of 1, that arrives at wrong rows.
        batch: source rows per step.
        max_steps: steps after which it gives up, with a warning.
        seed: of everything random.
        standardize: "auto", "columns", "common" or "none" (see `Scaler`).
        start: a fitted model of the same laws, from whose prices to start.

    Returns:
        A model of family "table", whose `training` holds the steps, the seconds, whether it converged, and the marginal error: an
        upper bound ("marginal_error"), and what was measured ("marginal_raw") beside what a perfect solution would measure on
        as many rows ("marginal_floor").

    Raises:
        InputError: if an argument is unusable, or source, y and start do not go together.
    """
    begun = time.perf_counter()
    eps, tolerance = checks.real("eps", eps, least=0), checks.real("tolerance", tolerance, least=0, strict=True)
    batch, max_steps, seed = checks.count("batch", batch), checks.count("max_steps", max_steps), checks.count("seed", seed, least=0)
    y, standardize = checks.samples("y", y), checks.choice("standardize", standardize, MODES)
    streams = None if source is None else [open_stream("source", source, seed=seed + k) for k in range(2)]
    x = None if streams is None else streams[0].probe().x
    if x is not None:
        checks.samples("source", x, event=tuple(y.shape[1:]), least=1)
        checks.same_dtype("y", y, "source", x)
    scaler = fit_scaler(y, source=x, mode=standardize, argument="y")
    shape = {"rows": len(y)}
    table = build_value(FAMILY, scaler, shape).requires_grad_(False)
    assert isinstance(table, TableValue)  # noqa: S101 (the family says so)
    table.y.copy_(scaler.target(y))
    table.eps.fill_(eps / scaler.cost_scale)
    if start is not None:
        table.g.copy_(_prices(start, y, scaler))
    stream, fresh = ([normal_stream(scaler.size, table.y, seed=seed + k) for k in range(2)] if streams is None
                     else [_inside(stream, scaler) for stream in streams])  # fmt: skip
    found = ascend(table, stream, fresh, tolerance=tolerance, batch=batch, max_steps=max_steps, check=FIRST_CHECK if start is None else 0)
    if not found.converged:
        warnings.warn(f"fit_table: the marginal error is {found.error:.3g} after {found.steps} steps, above the tolerance {tolerance:g}; "
                      "raise max_steps or tolerance", stacklevel=2)  # fmt: skip
    facts = {"steps": found.steps, "seconds": round(time.perf_counter() - begun, 3), "seed": seed, "eps": eps, "tolerance": tolerance,
             "converged": found.converged, "marginal_error": found.error, "marginal_raw": found.raw, "marginal_floor": found.floor,
             "marginal_rows": found.rows}  # fmt: skip
    return TransportModel(table, Problem(eps=eps or None), scaler, FAMILY, shape, facts)


def _inside(stream: Stream, scaler: Scaler) -> Stream:
    """The stream in model space; an array stays one, as all its rows are known."""
    if isinstance(stream, Rows):
        return Rows(stream.name, Batch(scaler.source(stream.rows.x)), stream.seed)
    return Mapped(stream, lambda batch: Batch(scaler.source(batch.x)))


@torch.no_grad()
def _prices(start: TransportModel, y: Tensor, scaler: Scaler) -> Float[Tensor, " m"]:
    """Prices of a fitted model at the rows y, in the model space of a scaler."""
    checks.kind("start", start, TransportModel, "a fitted model")
    same = (start.event, start.scaler.noise, start.backward) == (scaler.event, scaler.noise, False)
    kind = "the standard normal" if scaler.noise else "data"
    require(same, "start", expected=f"a model from {kind} to rows of shape {scaler.event}",
            got=f"one from {'the standard normal' if start.scaler.noise else 'data'} to {start.event}"
                f"{', reversed' if start.backward else ''}", cure="leave start out, or pass a model of the same two laws")  # fmt: skip
    return start.price(y) / scaler.cost_scale
