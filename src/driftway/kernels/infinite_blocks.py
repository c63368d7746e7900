"""Infinite networks block by block: all layers on one block that fits the cache, in place, by the lower triangle where symmetric.

The recursion of ABReLU networks is one of cosines. Let q_i be the variance of row i before a layer, r_i = q_i^(1/2), c = S_ij / (r_i r_j),
and theta = Theta_ij / (r_i r_j). With p = 2 h^2 / pi, k = pi m^2 / (2 h^2) (see `activations`) the dual is T = p r_i r_j (s + phi c),
Tdot = p phi, s = (1 - c^2)^(1/2), phi = asin c + k, and a layer with the dense one after it is

    c'     = A_ij (s + phi c + g_i g_j)                  A_ij = a_i a_j,    a_i = p^(1/2) w r_i / r'_i
    theta' = A_ij (s + phi c + g_i g_j + phi theta)      g_i = b / (p^(1/2) w r_i)
    q'_i   = w^2 (m^2 + h^2) q_i + b^2                   after the last layer r'_i = 1: c' is the NNGP, theta' the NTK

which starts from theta = c = u_i.u_j with unit rows u_i = (w x_i / d^(1/2), b) / r_i. The code holds -c and -theta: one threshold then
clamps c from above and sets parallel rows to c = 1. Rows that are 0 without bias have u_i = 0 and a_i = 0.

Threads work on blocks of their own. A block is at most `TILE` entries, below which torch does not share out an operation.

Equation (K8): docs/derivations/kernels.md.
"""

import contextlib
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.kernels.activations import PARALLEL, ABReLU

TILE = {"cpu": 2**15, "cuda": 2**24}  # entries of a block
ROWS, PANEL = 128, 512  # of a block on a CPU, and of one matrix product
HUGE = 2**24  # bytes of a matrix that is given huge pages

Tile = Callable[[Tensor, slice, slice], Sequence[Tensor]]


def empty(n: int, m: int, like: Tensor) -> Float[Tensor, "n m"]:
    """A matrix (n, m) of the dtype and device of a tensor; if it is large, in huge pages, where Linux has them: first writes are faster."""
    size = n * m * like.element_size()
    if like.device.type != "cpu" or size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return like.new_empty(n, m)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(n, m)


@torch.no_grad()
def fill(outputs: Sequence[Float[Tensor, "n m"]], left: Float[Tensor, "n d"], right: Float[Tensor, "m d"], make: Callable[[], Tile], *,
         symmetric: bool) -> None:  # fmt: skip
    """Fill matrices that depend on left right^T entry by entry, block by block, with as many threads as torch uses.

    Args:
        outputs: empty matrices.
        left: L.
        right: R.
        make: called once by each thread; what it returns is given a block of L R^T and its rows and columns, and returns that block of
            each output, which the next call may overwrite.
        symmetric: compute the lower triangle only.
    """
    (n, m), device = outputs[0].shape, outputs[0].device
    size = TILE.get(device.type, TILE["cuda"])
    height = ROWS if device.type == "cpu" else math.isqrt(size)
    for i in range(0, n, PANEL):
        part = outputs[0][i : i + PANEL, : min(i + PANEL, n) if symmetric else m]  # the product, until its block is worked on
        torch.mm(left[i : i + PANEL], right[: part.shape[1]].mT, out=part)
    inference = torch.is_inference_mode_enabled()  # the threads do not know
    queue = iter(list(_tiles(n, m, height, size // height, symmetric=symmetric)))

    @torch.no_grad()
    def work(_: int) -> None:
        with torch.inference_mode(inference):
            take()

    def take() -> None:
        tile, mirror = make(), left.new_empty(size)
        for rows, columns in queue:
            for out, block in zip(outputs, tile(outputs[0][rows, columns], rows, columns), strict=True):
                if symmetric and rows == columns:
                    out[rows, columns] = block.tril() + block.tril(-1).mT
                    continue
                out[rows, columns] = block
                if symmetric:  # by way of contiguous memory, which torch transposes into fast
                    out[columns, rows] = mirror[: block.numel()].view(block.mT.shape).copy_(block.mT)

    threads = torch.get_num_threads() if device.type == "cpu" else 1
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def _tiles(n: int, m: int, height: int, width: int, *, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n, height):
        rows = slice(i, min(i + height, n))
        end = i if symmetric else m
        for j in range(0, end, width):
            yield rows, slice(j, min(j + width, end))
        if symmetric:
            yield rows, rows


@dataclass(frozen=True)
class Side:
    """Rows as the recursion of cosines needs them.

    Attributes:
        u: unit rows.
        a: scales a_i, one row for each layer.
        g: shares g_i of the bias, one row for each layer.
    """

    u: Float[Tensor, "n d"]
    a: Float[Tensor, "depth n"]
    g: Float[Tensor, "depth n"]


def side(x: Float[Tensor, "n d"], phi: ABReLU, *, depth: int, w: float | int, b: float | int) -> Side:
    """Unit rows and scales of an ABReLU network.

    Args:
        x: rows.
        phi: its activation, with unlike slopes.
        depth: its hidden layers, at least one.
        w: standard deviation of the weights.
        b: of the biases.
    """
    p, growth = (phi.b - phi.a) ** 2 / (2 * math.pi), w**2 * (phi.a**2 + phi.b**2) / 2
    X = torch.cat([x.double() * (w / math.sqrt(x.shape[1])), x.new_full((len(x), 1), b, dtype=torch.float64)], 1)
    r = X.norm(dim=1)
    u, a, g = _divide(X, r[:, None]), [], []
    for layer in range(depth):
        after = (growth * r**2 + b**2).sqrt()
        a.append(math.sqrt(p) * w * (r if layer == depth - 1 else _divide(r, after)))
        g.append(_divide(torch.full_like(r, b), math.sqrt(p) * w * r))
        r = after
    return Side(u.to(x.dtype), torch.stack(a).to(x.dtype), torch.stack(g).to(x.dtype))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, 0)


def relu_tile(one: Side, two: Side, phi: ABReLU, parts: Sequence[str]) -> Tile:
    """The recursion of cosines on blocks of -u_i.u_j, with memory of its own.

    Args:
        one: the rows.
        two: the columns.
        phi: the activation.
        parts: what to return, of "nngp" and "ntk".
    """
    k = math.pi / 2 * ((phi.a + phi.b) / (phi.b - phi.a)) ** 2
    memory, unit, parallel = one.u.new_empty(4, TILE["cpu"]), one.u.new_ones(()), PARALLEL * torch.finfo(one.u.dtype).eps - 1
    depth, biased = len(one.a), bool((one.g != 0).any())
    signs = torch.tensor([-1] * (depth - 1) + [1]).to(one.a)
    a1, g1, a2, g2 = one.a[..., None], one.g[..., None], two.a * signs[:, None], two.g

    def tile(start: Tensor, rows: slice, columns: slice) -> Sequence[Tensor]:
        c, f, s, theta = memory[:, : start.numel()].view(4, *start.shape)  # -c, phi, s and the sum it grows to, -theta
        scales = zip(a1[:, rows], g1[:, rows], a2[:, columns], g2[:, columns], strict=True)
        for layer, (a_i, g_i, a_j, g_j) in enumerate(scales):
            torch.threshold_(torch.clamp(c if layer else start, max=1, out=c), parallel, -1.0)
            torch.acos(c, out=f)
            if k != math.pi / 2:
                f.add_(k - math.pi / 2)
            torch.addcmul(unit, c, c, value=-1, out=s).sqrt_().addcmul_(f, c, value=-1)
            if biased:
                s.addcmul_(g_i, g_j)
            if "ntk" in parts:
                torch.addcmul(s, f, theta if layer else c, value=-1, out=theta)
            A = torch.mul(a_i, a_j, out=f)
            if layer < depth - 1 or "nngp" in parts:
                torch.mul(s, A, out=c)
            if "ntk" in parts:
                theta.mul_(A)
        return [{"nngp": c, "ntk": theta}[part] for part in parts]

    return tile
