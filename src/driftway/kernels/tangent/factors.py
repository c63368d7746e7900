"""Per-sample gradients of one parameter, kept as the factors they are made of.

A linear layer y_s = W x_s, with b_s the gradient of a score f with respect to y_s, has

    df/dW = sum_s b_s x_s^T                                                                              Outer: left = b, right = x
    <df_i/dW, df_j/dW> = sum_{s,s'} (b_is . b_js') (x_is . x_js')                                        the linear-layer identity

where s runs over the T positions of a row (Novak, Sohl-Dickstein and Schoenholz 2022, "Fast finite width neural tangent kernel",
section 3.2). An embedding is a linear layer of one-hot inputs. Its gradient is a few rows of the table: Rows. A gradient that is
smaller than its factors is kept as it is: Direct. Positions with b = 0, as padding has, add nothing: without them, Packed.

As a matrix, a gradient has `shape` (r, c). `form` writes some of its r rows, for all n samples, to a buffer.

Equations (K20), (K22): docs/derivations/kernels.md.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Direct:
    """Gradients themselves.

    Attributes:
        g: (n, r, c).
    """

    g: Float[Tensor, "n r c"]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a gradient."""
        return self.g.shape[1], self.g.shape[2]

    def form(self, rows: slice, out: Float[Tensor, "n rows c"], *, add: bool) -> None:
        """Write rows of the gradients to `out`, or add them to it."""
        if add:
            out += self.g[:, rows]
        else:
            out.copy_(self.g[:, rows])

    def dot(self, w: Float[Tensor, "r c"]) -> Float[Tensor, " n"]:
        """<g_i, w> for every sample."""
        return self.g.flatten(1) @ w.flatten()

    def combine(self, v: Float[Tensor, " n"]) -> Float[Tensor, "r c"]:
        """sum_i v_i g_i."""
        return (v @ self.g.flatten(1)).view(self.shape)


@dataclass(frozen=True)
class Outer:
    """Sums of outer products, in `groups` that lie below each other in the gradient.

    Attributes:
        left: (n, groups, T, q).
        right: (n, groups, T, p).
    """

    left: Float[Tensor, "n groups T q"]
    right: Float[Tensor, "n groups T p"]

    @property
    def shape(self) -> tuple[int, int]:
        """groups q rows, p columns."""
        return self.left.shape[1] * self.left.shape[3], self.right.shape[3]

    @torch.no_grad()
    def form(self, rows: slice, out: Float[Tensor, "n rows c"], *, add: bool) -> None:
        """Write rows of the gradients to `out`, or add them: some of one group, or whole groups."""
        q, p = self.left.shape[3], self.right.shape[3]
        groups = slice(rows.start // q, -(-rows.stop // q))
        inside = slice(rows.start % q, rows.start % q + min(q, rows.stop - rows.start))
        left, right = self.left[:, groups, :, inside].flatten(0, 1), self.right[:, groups].flatten(0, 1)
        into = out.view(len(left), -1, p)
        if add:
            into.baddbmm_(left.mT, right)
        else:
            torch.bmm(left.mT, right, out=into)

    def dot(self, w: Float[Tensor, "r c"]) -> Float[Tensor, " n"]:
        """<g_i, w> = sum_s left_s . W right_s for every sample."""
        by_group = w.reshape(self.left.shape[1], self.left.shape[3], -1)
        return ((self.left @ by_group) * self.right).sum((1, 2, 3))

    def combine(self, v: Float[Tensor, " n"]) -> Float[Tensor, "r c"]:
        """sum_i v_i g_i."""
        weighted = self.left * v[:, None, None, None]
        left, right = (a.transpose(0, 1).flatten(1, 2) for a in (weighted, self.right))
        return (left.mT @ right).flatten(0, 1)


@dataclass(frozen=True)
class Packed:
    """Sums of outer products over different numbers of positions, all positions after each other.

    Attributes:
        left: (t, q).
        right: (t, p).
        sizes: positions of each sample; they sum to t.
    """

    left: Float[Tensor, "t q"]
    right: Float[Tensor, "t p"]
    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """q rows, p columns."""
        return self.left.shape[1], self.right.shape[1]

    def form(self, rows: slice, out: Float[Tensor, "n rows c"], *, add: bool) -> None:
        """Write rows of the gradients to `out`, or add them to it."""
        for into, left, right in zip(out, self.left[:, rows].split(self.sizes), self.right.split(self.sizes), strict=True):
            if add:
                into.addmm_(left.mT, right)
            else:
                torch.mm(left.mT, right, out=into)

    def samples(self) -> Int[Tensor, " t"]:
        """The sample of each position."""
        sizes = torch.tensor(self.sizes, device=self.left.device)
        return torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)

    def dot(self, w: Float[Tensor, "r c"]) -> Float[Tensor, " n"]:
        """<g_i, w> = sum_s left_s . W right_s for every sample."""
        own = ((self.left @ w) * self.right).sum(1)
        return own.new_zeros(len(self.sizes)).index_add_(0, self.samples(), own)

    def combine(self, v: Float[Tensor, " n"]) -> Float[Tensor, "r c"]:
        """sum_i v_i g_i."""
        return (self.left * v[self.samples(), None]).mT @ self.right


@dataclass(frozen=True)
class Rows:
    """A few rows of a table: the gradient of sample `sample[u]` has the row `values[u]` at place `index[u]`; each pair occurs once.

    Attributes:
        sample: (u,), ascending.
        index: (u,).
        values: (u, c).
        n: number of samples.
        r: number of rows of the table.
    """

    sample: Int[Tensor, " u"]
    index: Int[Tensor, " u"]
    values: Float[Tensor, "u c"]
    n: int
    r: int

    @property
    def shape(self) -> tuple[int, int]:
        """The table's."""
        return self.r, self.values.shape[1]

    def form(self, rows: slice, out: Float[Tensor, "n rows c"], *, add: bool) -> None:
        """Write rows of the gradients to `out`, or add them to it."""
        if not add:
            out.zero_()
        here = (self.index >= rows.start) & (self.index < rows.stop)
        out[self.sample[here], self.index[here] - rows.start] += self.values[here]

    def dot(self, w: Float[Tensor, "r c"]) -> Float[Tensor, " n"]:
        """<g_i, w> for every sample."""
        own = (self.values * w[self.index]).sum(1)
        return own.new_zeros(self.n).index_add_(0, self.sample, own)

    def combine(self, v: Float[Tensor, " n"]) -> Float[Tensor, "r c"]:
        """sum_i v_i g_i."""
        return self.values.new_zeros(self.shape).index_add_(0, self.index, self.values * v[self.sample, None])


Factor = Direct | Outer | Packed | Rows


@dataclass(frozen=True)
class Spec:
    """What a plan of work must know of a factor.

    Attributes:
        kind: "direct", "outer", "packed" or "rows".
        r: rows of a gradient.
        c: columns.
        q: rows of a group.
        T: positions.
    """

    kind: str
    r: int
    c: int
    q: int
    T: int


def spec(factor: Factor) -> Spec:
    """The plan's view of a factor."""
    r, c = factor.shape
    if isinstance(factor, Outer):
        return Spec("outer", r, c, factor.left.shape[3], factor.left.shape[2])
    if isinstance(factor, Packed):
        return Spec("packed", r, c, r, max(factor.sizes))
    return Spec("rows" if isinstance(factor, Rows) else "direct", r, c, r, 1)


def samples_of(factor: Factor) -> int:
    """Number of samples."""
    return factor.n if isinstance(factor, Rows) else len(factor.sizes) if isinstance(factor, Packed) else len(_like(factor))


def padded(factor: Packed) -> Outer:
    """With empty positions again, as many as make the samples alike."""
    sides = (pad_sequence(list(side.split(factor.sizes)), batch_first=True)[:, None] for side in (factor.left, factor.right))
    return Outer(*sides)


def moved(factor: Factor, device: torch.device | str) -> Factor:
    """The factor on a device."""
    tensors = {name: entry.to(device) for name, entry in vars(factor).items() if isinstance(entry, Tensor)}
    return replace(factor, **tensors)


def _like(factor: Factor) -> Tensor:
    return factor.g if isinstance(factor, Direct) else factor.values if isinstance(factor, Rows) else factor.left
