"""What a fitted estimator rests on: how alike the domains are, which columns and rows count, and how well it foresees the target's labels.

Distances are between the rows of a source and those of the target, labelled or not, in the two kernels k of the network, with the columns
multiplied by their relevance:

    MMD^2(s, t) = |mu_s - mu_t|^2,    part = MMD^2 n m / (n + m)^2 / (mean_i k(x_i, x_i) - mean_ij k(x_i, x_j))    over both samples

part is what lies between the domains of all variation of the rows in feature space, from 0 to 1. The test of equal laws is that of Gretton
et al. (2012). The relevance was learned from these rows: the test is of the rows as the estimator sees them. Weights p_T/p_S of source
rows have the effective size (sum w)^2 / sum w^2: where it is a small part of the rows, few of them look like the target.

Equations (A28), (A32): docs/derivations/adapt.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.adapt.distribution_kernel import DistributionKernel
from driftway.adapt.estimators_auto import Decision
from driftway.adapt.estimators_base import DomainRegressor, between
from driftway.adapt.frame import canonical
from driftway.adapt.importance import effective_sample_size, importance_weights
from driftway.adapt.influence import Foreseen, foreseen, influence, mixed
from driftway.adapt.shift import Shift
from driftway.adapt.stacking import Candidate, candidate
from driftway.checks import count, require
from driftway.kernels import mmd_test_from_gram

LEARNED = ("linear", "transfer", "dino")  # candidates whose k_P is learned
ROWS, TOP, SHOWN = 500, 10, 3  # of a domain, drawn for what is quadratic in them; source rows that are listed; their columns


@dataclass(frozen=True)
class Distance:
    """How far the rows of a source are from those of the target, in one kernel.

    Attributes:
        mmd2: MMD^2, the unbiased estimate, which may be negative.
        part: of the variation of rows that lies between the domains, by it.
        p_value: of the test of equal laws.
    """

    mmd2: float
    part: float
    p_value: float


@dataclass(frozen=True)
class DomainFacts:
    """A domain.

    Attributes:
        name: target, source, or the name that was given.
        rows: their number.
        labelled: how many have a label.
        share: part of its labels in the predictions.
        nngp: distance from the target in the NNGP; None for the target, and where a domain has one row.
        ntk: the same in the NTK.
        effective: effective size of the weights p_T/p_S, as a part of the rows; NaN where there is no distance.
    """

    name: str
    rows: int
    labelled: int
    share: float
    nngp: Distance | None = None
    ntk: Distance | None = None
    effective: float = math.nan


@dataclass(frozen=True)
class Rating:
    """A candidate, or the one process there is.

    Attributes:
        name: of the process.
        trained: whether all layers are.
        weight: in the mixture.
        density: mean log density of the target's labels; NaN without such.
        correlation: k_P of each source with the target, normalised.
        foreseen: the labels.
    """

    name: str
    trained: bool
    weight: float
    density: float
    correlation: tuple[float, ...]
    foreseen: Foreseen


@dataclass(frozen=True)
class TopRow:
    """A source row that counts: its index in the user's table, its domain, its part of all labels, its label, its relevant columns."""

    index: int
    domain: str
    share: float
    y: tuple[float, ...]
    x: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """What a fitted estimator rests on; made by [`explain`][driftway.adapt.explain.explain].

    Attributes:
        method: name of the estimator's class.
        outputs: names of the targets.
        domains: the target first.
        described: the candidate that correlation, relevance and distances are those of: the heaviest of those that learn k_P.
        correlation: k_P between the domains, normalised.
        relevance: what each column, in standard deviations, is multiplied by; the largest first.
        influence: part of each row's label in the predictions, in the user's order; 0 without label.
        top: source rows of the greatest influence, the greatest first.
        foreseen: labels of the target, by the mixture.
        candidates: by weight; one for an estimator that does not choose.
        decision: of an estimator that chooses.
        remarks: what to know about the rows.
    """

    method: str
    outputs: tuple[str, ...]
    domains: tuple[DomainFacts, ...]
    described: str
    correlation: Float[Tensor, "D D"]
    relevance: tuple[tuple[str, float], ...]
    influence: Float[Tensor, " n"]
    top: tuple[TopRow, ...]
    foreseen: Foreseen
    candidates: tuple[Rating, ...]
    decision: Decision | None
    remarks: tuple[str, ...]


@torch.no_grad()
def explain(estimator: Any, *, domains: Sequence[str] | None = None, permutations: int = 499, rows: int = ROWS,
            seed: int = 0) -> Explanation:  # fmt: skip
    """Explain a fitted estimator.

    Args:
        estimator: one of the regressors of this room.
        domains: names of the domains, the target first.
        permutations: of the tests.
        rows: of each domain, at most, for distances and influence.
        seed: draws these rows and the permutations.

    Raises:
        InputError: if the estimator is none of them or not fitted, or the names do not fit its domains.
    """
    require(isinstance(estimator, DomainRegressor) and hasattr(estimator, "model_"), "estimator", expected="a fitted regressor of "
            "driftway.adapt", got=type(estimator).__name__, cure="call its fit first; of a Pipeline, pass the last step")  # fmt: skip
    shift: Shift = estimator.shift_
    names = tuple(domains) if domains is not None else _names(shift)
    require(len(names) == shift.sources + 1, "domains", expected=f"{shift.sources + 1} names, the target's first", got=len(names),
            cure="name every domain once")  # fmt: skip
    known: list[Candidate] = getattr(estimator, "candidates_", None) or [candidate(type(estimator).__name__, estimator.model_)]
    w = getattr(estimator, "weights_", shift.X.new_ones(1))
    learned = [i for i, own in enumerate(known) if own.name in LEARNED] or list(range(len(known)))
    shown = known[max(learned, key=lambda i: float(w[i]))]
    generator = torch.Generator().manual_seed(count("seed", seed, least=0))
    drawn = [_draw(shift, d, count("rows", rows, least=2), generator) for d in range(shift.sources + 1)]
    parts, share = [foreseen(own, shift) for own in known], influence(known, w, shift, drawn[0])
    ratings = [_rating(own, float(w[i]), parts[i], shift) for i, own in enumerate(known)]
    facts = [DomainFacts(name, len(own := shift.rows(d)), int(shift.labelled[own].sum()), float(share[own].sum()))
             for d, name in enumerate(names)]  # fmt: skip
    Z, weights = shown.frame.standard(shift.X), getattr(estimator, "weights", "kulsif")
    for d in range(1, len(names)):
        S, T = Z[drawn[d]], Z[drawn[0]]
        if min(len(S), len(T)) > 1:
            nngp, ntk = _distances(shown.process.kernel, S, T, permutations, generator)
            ratio = importance_weights(S, T, method=weights)
            facts[d] = replace(facts[d], nngp=nngp, ntk=ntk, effective=effective_sample_size(ratio) / len(ratio))
    relevance = sorted(zip(shift.names, shown.process.kernel.relevance.tolist(), strict=True), key=lambda pair: -pair[1])
    return Explanation(
        type(estimator).__name__, _outputs(estimator), tuple(facts), shown.name, _normalised(between(shown.process, shift)),
        tuple(relevance), share, _top(shift, share, names, tuple(name for name, _ in relevance[:SHOWN])), mixed(parts, w),
        tuple(sorted(ratings, key=lambda own: -own.weight)), getattr(estimator, "decision_", None), tuple(_remarks(shift)),
    )  # fmt: skip


def _names(shift: Shift) -> tuple[str, ...]:
    return ("target", *(["source"] if shift.sources == 1 else [f"source {code}" for code in shift.codes[1:]]))


def _outputs(estimator: Any) -> tuple[str, ...]:
    given, k = estimator._names, estimator.shift_.outputs
    if given is not None:
        return tuple(map(str, [given] if isinstance(given, str | int) else given))
    return ("y",) if k == 1 else tuple(f"y{j}" for j in range(k))


def _draw(shift: Shift, domain: int, rows: int, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Rows of a domain, which do not depend on the order of the table."""
    own = shift.rows(domain)
    own = own[shift.weight[own] > 0]
    own = own[canonical(shift.X[own])]
    return own[torch.randperm(len(own), generator=generator)[:rows].to(own.device)]


def _rating(own: Candidate, weight: float, labels: Foreseen, shift: Shift) -> Rating:
    lam = _normalised(between(own.process, shift))[0, 1:]
    return Rating(own.name, own.trained, weight, float(own.log_density.mean()), tuple(lam.tolist()), labels)


def _normalised(k: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    unit = k.diagonal().clamp_min(torch.finfo(k.dtype).tiny).sqrt()
    return k / torch.outer(unit, unit)


def _top(shift: Shift, share: Tensor, names: Sequence[str], columns: tuple[str, ...]) -> tuple[TopRow, ...]:
    source = ((shift.domain > 0) & (share > 0)).nonzero()[:, 0]
    best = source[share[source].argsort(descending=True, stable=True)[:TOP]]
    return tuple(TopRow(i, names[int(shift.domain[i])], float(share[i]), tuple(shift.y[i].tolist()),
                        {name: float(shift.X[i, shift.names.index(name)]) for name in columns}) for i in best.tolist())  # fmt: skip


def _distances(kernel: DistributionKernel, S: Tensor, T: Tensor, permutations: int, generator: torch.Generator) -> list[Distance]:
    n, m, pair, found = len(S), len(T), kernel.network.kernels(torch.cat([S, T]) * kernel.relevance), []
    for K in (pair.nngp, pair.ntk):
        seen, spread = mmd_test_from_gram(K, n, generator=generator, permutations=permutations), float(K.diagonal().mean() - K.mean())
        part = max(seen.statistic, 0.0) * n * m / (n + m) ** 2 / spread if spread > 0 else 0.0
        found.append(Distance(seen.statistic, part, seen.p_value))
    return found


def _remarks(shift: Shift) -> list[str]:
    twice = shift.conflicts
    more = f"{twice} labelled rows have the inputs of another row of their domain and a different label: the difference counts as noise"
    return shift.remarks() + [more] * (twice > 0)
