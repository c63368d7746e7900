"""A shift: the rows of one target and of any number of sources, in one table.

Domains are whole numbers: 0 is the target, 1, ..., D are the sources in increasing order of their codes. The user's codes follow skada:
a positive code is a source, a negative one the target, and a target row whose y is NaN has no label. Source rows are always labelled.

Equation (A1): docs/derivations/adapt.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.adapt.intake import check_finite, read_codes, read_table, read_targets, read_weights
from driftway.checks import InputError, require


@dataclass(frozen=True)
class Shift:
    """Rows of a target and of its sources, in the order in which they were given. It holds copies.

    Attributes:
        X: inputs, float64.
        y: targets, float64; NaN throughout in the row of an unlabelled target.
        domain: 0 for the target, 1, ..., D for the sources.
        weight: sample weights >= 0.
        codes: the user's code of each domain, that of the target first.
        names: names of the columns of X.
        flat: whether y came as (n,).
        stated: whether the domains were given, not guessed.
    """

    X: Float[Tensor, "n d"]
    y: Float[Tensor, "n k"]
    domain: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    codes: tuple[int, ...]
    names: tuple[str, ...]
    flat: bool
    stated: bool = True

    @property
    def sources(self) -> int:
        """D, the number of sources."""
        return len(self.codes) - 1

    @property
    def outputs(self) -> int:
        """k, the number of outputs."""
        return self.y.shape[1]

    @property
    def labelled(self) -> Tensor:
        """Which rows have a target."""
        return ~self.y[:, 0].isnan()

    @property
    def labels(self) -> int:
        """How many target rows have a target, and some weight."""
        return int((self.labelled & (self.domain == 0) & (self.weight > 0)).sum())

    @property
    def conflicts(self) -> int:
        """How many labelled rows have the inputs of another row of their domain, and a different label."""
        which = self.labelled
        y = self.y[which]
        if len(y) == 0:
            return 0
        _, group = torch.cat([self.domain[which, None].to(self.X), self.X[which]], 1).unique(dim=0, return_inverse=True)
        index, start = group[:, None].expand_as(y), torch.zeros_like(y)
        low, high = (start.scatter_reduce(0, index, y, way, include_self=False) for way in ("amin", "amax"))
        return int((high > low).any(1)[group].sum())

    def rows(self, domain: int) -> Int[Tensor, " m"]:
        """Indices of the rows of a domain."""
        return (self.domain == domain).nonzero()[:, 0]

    def select(self, index: Tensor) -> "Shift":
        """These rows alone, by indices or a mask; the list of domains stays."""
        return replace(self, X=self.X[index], y=self.y[index], domain=self.domain[index], weight=self.weight[index])

    def alone(self) -> "Shift":
        """The target without its sources."""
        return replace(self.select(self.rows(0)), codes=self.codes[:1])

    def remarks(self) -> list[str]:
        """What a user should know before the fit, in sentences."""
        found, labels = [], self.y[self.labelled & (self.domain == 0) & (self.weight > 0)]
        if len(labels) == 0:
            found.append("no target row has a label: predictions rest on the source alone")
        if self.sources == 0 and self.stated:
            found.append("sample_domain has target rows only: there is nothing to transfer")
        for which, y in ((f"all {int(self.labelled.sum())} labels", self.y[self.labelled]), (f"all {len(labels)} target labels", labels)):
            constant = (y == y[:1]).all(0).nonzero()[:, 0].tolist() if len(y) > 1 else []
            if constant:
                where = "" if self.outputs == 1 else f" in output {constant[0]}"
                found.append(f"{which}{where} equal {float(y[0, constant[0]]):g}: y is constant there, and says nothing about X")
                break
        return found

    @classmethod
    def from_domains(cls, X: object, y: object, sample_domain: object = None, sample_weight: object = None,
                     names: Sequence[str] | None = None) -> "Shift":  # fmt: skip
        """A shift from one table with a code for each row, as skada has it.

        Args:
            X: (n, d) array, tensor, data frame or list of numbers.
            y: (n,) or (n, k), NaN for a target row without label.
            sample_domain: (n,) codes, positive for sources, negative for the target. None: rows without label are target rows and
                the others source rows; if every row has a label, all are target rows.
            sample_weight: (n,) weights >= 0; ones if None.
            names: of the columns; those of the data frame, or x0, x1, ..., if None.

        Raises:
            InputError: if an argument cannot be used.
        """
        require(names is None or (not isinstance(names, str) and isinstance(names, Iterable)), "names", expected="a list of names",
                got=repr(names)[:80], cure="name every column once")  # fmt: skip
        table, own = read_table("X", X)
        given = tuple(map(str, names)) if names is not None else own or _default(table)
        require(len(given) == table.shape[1], "names", expected=f"{table.shape[1]} names, one for each column of X", got=len(given),
                cure="name every column once")  # fmt: skip
        check_finite("X", table, given)
        n, target = len(table), read_targets("y", y).to(table.device)
        require(len(target) == n, "y", expected=f"{n} rows, as X has", got=len(target), cure="pass one target for each row of X")
        flat = target.ndim == 1
        target = target[:, None] if flat else target
        gap = _gaps("y", target)
        if sample_domain is None:
            mixed = bool(gap.any() and not gap.all())
            domain, codes = (~gap).long() * int(mixed), (-2, 1) if mixed else (-1,)
        else:
            domain, codes = read_codes(sample_domain, n, table.device)
        _masked(target, gap, domain, codes)
        return cls(table, target, domain, read_weights(sample_weight, n, table.device), codes, given, flat, sample_domain is not None)

    @classmethod
    def from_arrays(cls, X_source: object, y_source: object, X_target: object, y_target: object = None, *, X_unlabelled: object = None,
                    sample_weight: object = None, names: Sequence[str] | None = None) -> "Shift":  # fmt: skip
        """A shift from one table for each domain. Its rows are those of the sources, the target, and the unlabelled target.

        Args:
            X_source: (n_S, d), or a list of such tables: several sources. None: no source.
            y_source: (n_S,) or (n_S, k), or a list of such targets.
            X_target: (n_T, d).
            y_target: (n_T,) or (n_T, k), NaN where there is no label; None: all rows are unlabelled.
            X_unlabelled: further target rows, all without label.
            sample_weight: (n,) weights >= 0 of all rows in the order above; ones if None.
            names: of the columns; those of the data frame, or x0, x1, ..., if None.

        Raises:
            InputError: if an argument cannot be used, or the tables have different columns.
        """
        several = isinstance(X_source, list | tuple) and (len(X_source) == 0 or _axes(X_source[0]) == 2)
        sources = [] if X_source is None else [*X_source] if several else [X_source]  # type: ignore[misc]
        answers = [] if X_source is None else y_source if several else [y_source]
        length = len(answers) if isinstance(answers, list | tuple) else -1
        require(length == len(sources), "y_source", expected=f"a list of {len(sources)} arrays, as X_source has",
                got=type(answers).__name__ if length < 0 else length, cure="pass one array of targets for each source")  # fmt: skip
        which = [f"[{i}]" if several else "" for i in range(len(sources))]
        tables = [(f"X_source{w}", f"y_source{w}", X, y) for w, X, y in zip(which, sources, answers, strict=True)]  # type: ignore[arg-type]
        tables += [("X_target", "y_target", X_target, y_target), ("X_unlabelled", "y_target", X_unlabelled, None)]
        X, y, first = [], [], ("", ())
        for i, (name, answer, rows, given) in enumerate(tables[: -1 if X_unlabelled is None else None]):
            table, own = read_table(name, rows)
            first = first if X else (name, own)
            _alike(first[0], X[0] if X else table, first[1], name, table, own)
            check_finite(name, table, own or _default(table))
            if i < len(sources) or given is not None:
                y.append(_answers(answer, given, name, len(table), y, source=i < len(sources)))
            else:
                y.append(torch.full((len(table), *(y[0].shape[1:] if y else ())), torch.nan, dtype=torch.float64))
            X.append(table.to(X[0].device if X else table.device))
        D = len(sources)
        codes = torch.cat([torch.full((len(x),), i + 1 if i < D else -D - 1) for i, x in enumerate(X)])
        return cls.from_domains(torch.cat(X), torch.cat(y), codes, sample_weight, names if names is not None else first[1] or None)


def _answers(argument: str, value: object, table: str, n: int, before: list[Tensor], *, source: bool) -> Tensor:
    """The targets of one table, with the outputs of those before."""
    y = read_targets(argument, value).cpu()
    require(len(y) == n, argument, expected=f"{n} rows, as {table} has", got=len(y), cure="pass one target for each row")
    shape = tuple(before[0].shape[1:]) if before else tuple(y.shape[1:])
    require(y.shape[1:] == shape, argument, expected=f"shape {(n, *shape)}, the outputs of the first source", got=f"shape {tuple(y.shape)}",
            cure="give all the same outputs")  # fmt: skip
    gap = _gaps(argument, y.reshape(n, -1)).nonzero()[:, 0].tolist()
    require(not (gap and source), argument, expected="a label in every source row", got=f"NaN in {len(gap)} of them, first in row "
            f"{gap[0] if gap else 0}", cure="drop these rows; only target rows may lack a label")  # fmt: skip
    return y


def _default(X: Tensor) -> tuple[str, ...]:
    return tuple(f"x{j}" for j in range(X.shape[1]))


def _axes(value: object) -> int:
    if isinstance(value, list | tuple):
        return 1 + (_axes(value[0]) if value else 0)
    return int(getattr(value, "ndim", 0))


def _gaps(argument: str, y: Tensor) -> Tensor:
    """Which rows have no label; refuses a row with some outputs only."""
    gap = y.isnan().any(1)
    part = (gap & ~y.isnan().all(1)).nonzero()[:, 0].tolist()
    row = part[0] if part else 0
    require(not part, argument, expected="rows with all outputs or none", got=f"NaN in output {int(y[row].isnan().long().argmax())} but "
            f"not in all of row {row} ({len(part)} such rows)", cure="write NaN in every output of the row, or fit one estimator for each "
            "output")  # fmt: skip
    return gap


def _masked(y: Tensor, gap: Tensor, domain: Tensor, codes: tuple[int, ...]) -> None:
    """Refuse a source row without label, and a table without any label."""
    unlabelled = (gap & (domain > 0)).nonzero()[:, 0].tolist()
    first = unlabelled[0] if unlabelled else 0
    require(not unlabelled, "y", expected="a label in every source row", got=f"NaN in {len(unlabelled)} of them, first in row {first} "
            f"(domain {codes[int(domain[first])]})", cure="drop these rows; only target rows may lack a label")  # fmt: skip
    require(not bool(gap.all()), "y", expected="at least one label", got=f"NaN in all {len(y)} rows", cure="pass source rows, or labels")


def _alike(first: str, a: Tensor, names: tuple[str, ...], name: str, b: Tensor, own: tuple[str, ...]) -> None:
    """Refuse a table whose columns are not those of the first."""
    if names and own and names != own:
        missing, extra = [c for c in names if c not in own], [c for c in own if c not in names]
        lacks = [f"without {', '.join(missing)}"] * bool(missing) + [f"with {', '.join(extra)} besides"] * bool(extra)
        raise InputError(name, expected=f"the columns of {first} in their order", got=" and ".join(lacks) or "another order",
                         cure=f"pass the same columns, e.g. {name}[list({first}.columns)]")  # fmt: skip
    require(a.shape[1] == b.shape[1], name, expected=f"{a.shape[1]} columns, as {first} has", got=b.shape[1],
            cure="give every domain the same columns in the same order")  # fmt: skip
