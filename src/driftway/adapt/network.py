"""The distribution-informed network of finite width, whose limit is a Gaussian process with the distribution kernel.

It sees a row x and its domain's law P_x through base samples b_i of that domain (0 is the target) and weights w_i = w_d(x)_i >= 0 of
sum 1. With g and h two fully connected networks of N outputs, in NTK parameterisation, and every parameter ~ N(0, 1),

    f_c(x, P_x) = N^(-1/2) sum_j a_jc g_j(x) h_j(P_x),    h(P_x) = sum_i w_i h(b_i)    [/ |P_x| if normalised, |P_x|^2 = w' K_base w]

For N -> inf the outputs are independent centred Gaussian processes (Wu et al., 2022, appendix). With K_g, Theta_g the kernels of
`FullyConnected` between rows, K_base, Theta_base those between base samples, K_h = w' K_base v and Theta_h = w' Theta_base v for the
weights w of x and v of x' [/ |P_x| |P_x'|], training is kernel regression with

    K = K_g K_h                                      NNGP; also the NTK where a alone is trained    DINO-INIT
    Theta = K_g K_h + Theta_g K_h + K_g Theta_h      NTK of a, g and h: readout and product rule    DINO-TRAIN

The sum over channels makes f normal: the product of two scalar networks is not. Weights are data of both limits. Where they are trained
too, the NTK gains sum_il (dw_i . dv_l) f(x, b_i) f(x', b_l), w and v with their 1 / |P|, which stays random at any width.

Equations (A7), (A8), (A9), (A10): docs/derivations/adapt.md.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from driftway.checks import count, require, same_dtype, samples
from driftway.kernels import FullyConnected, Pair
from driftway.kernels.activations import Activation, activation

Weights = Callable[[Tensor, int, Tensor], Tensor]  # rows (n, d), their domain, its base samples (m, d) -> w, (n, m) or (1, m)


class Perceptron(nn.Module):
    """A finite network of this limit, with as many outputs as hidden units."""

    def __init__(self, limit: FullyConnected, inputs: int, width: int, draw: Callable[..., nn.Parameter]) -> None:
        super().__init__()
        self.phi, self.w, self.b = activation(limit.activation), float(limit.w_std), float(limit.b_std or 0)
        self.W = nn.ParameterList([draw(n, d) for d, n in pairwise((inputs, *[width] * (limit.depth + 1)))])
        self.B = nn.ParameterList([draw(width) for _ in self.W])

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n N"]:
        for layer, (W, B) in enumerate(zip(self.W, self.B, strict=True)):
            x = torch.addmm(self.b * B, self.phi(x) if layer else x, W.mT, alpha=self.w / W.shape[1] ** 0.5)
        return x


class DistributionNetwork(nn.Module):
    """The network at the top of this file, in the dtype and on the device of the base samples.

    Args:
        base: (m_d, d) base samples of each domain, the target first.
        width: N.
        generator: of the parameters.
        depth: hidden layers of g and of h.
        activation: as in `FullyConnected`, like w_std and b_std.
        w_std: of all weights.
        b_std: of all biases.
        outputs: columns of f.
        weights: w, such as `AttentionWeights`; uniform if None.
        normalize: whether to divide h(P_x) by its norm at infinite width: K_h is a cosine.

    Raises:
        InputError: if an argument is none of these.
    """

    base: Tensor
    gram: Tensor | None

    def __init__(self, base: Sequence[object], *, width: int, generator: torch.Generator, depth: int = 2,
                 activation: str | Activation = "relu", w_std: float | int = 1.5, b_std: float | int | None = 0.05, outputs: int = 1,
                 weights: Weights | None = None, normalize: bool = True) -> None:  # fmt: skip
        super().__init__()
        require(isinstance(base, Sequence) and len(base) > 0, "base", expected="a list of samples, one for each domain",
                got=type(base).__name__, cure="pass [X_target, X_source, ...]")  # fmt: skip
        found = [samples("base[0]", base[0], least=1)]
        require(found[0].ndim == 2, "base[0]", expected="rows (m, d)", got=f"shape {tuple(found[0].shape)}", cure="flatten its rows")
        for name, own in ((f"base[{d}]", base[d]) for d in range(1, len(base))):
            found.append(samples(name, own, event=tuple(found[0].shape[1:]), least=1))
            same_dtype("base[0]", found[0], name, found[-1])
        self.limit = FullyConnected(depth, activation, w_std, b_std)
        self.parts = [slice(end - len(own), end) for own, end in zip(found, accumulate(map(len, found)), strict=True)]
        self.width, self.weights = count("width", width), weights
        self.register_buffer("base", torch.cat(found))
        self.register_buffer("gram", self.limit.nngp(self.base) if normalize else None, persistent=False)

        def draw(*shape: int) -> nn.Parameter:
            drawn = torch.randn(shape, generator=generator, dtype=self.base.dtype, device=generator.device)
            return nn.Parameter(drawn.to(self.base.device))

        self.g, self.h = (Perceptron(self.limit, self.base.shape[1], width, draw) for _ in range(2))
        self.readout = draw(width, count("outputs", outputs))

    def forward(self, x: object, domain: int | Tensor = 0) -> Float[Tensor, "n k"]:
        """f(x, P_x) for rows x (n, d) of these domains.

        Raises:
            InputError: if rows or domains are not like those of the base samples.
        """
        return self.read(self.features(x, domain))

    def read(self, features: Float[Tensor, "n N"]) -> Float[Tensor, "n k"]:
        """f from `features`."""
        return features @ self.readout / self.width**0.5

    def features(self, x: object, domain: int | Tensor = 0) -> Float[Tensor, "n N"]:
        """g(x) h(P_x): what the readout works on. Errors as for `forward`."""
        rows, domains = self._rows(x, domain)
        return self.g(rows) * self._mean(rows, domains, self.h(self.base))

    @torch.no_grad()
    def limit_kernels(self, x: object, domain: int | Tensor = 0, y: object = None, other: int | Tensor = 0) -> Pair:
        """NNGP and NTK of infinite width, between rows x of these domains and rows y of the other ones; with x itself if y is None."""
        rows, domains = self._rows(x, domain)
        columns, others = (rows, domains) if y is None else self._rows(y, other)
        g, base = self.limit.kernels(rows, None if y is None else columns), self.limit.kernels(self.base)
        h = Pair(*(self._mean(rows, domains, self._mean(columns, others, K).mT.contiguous()) for K in (base.nngp, base.ntk)))
        return Pair(g.nngp * h.nngp, (g.nngp + g.ntk) * h.nngp + g.nngp * h.ntk)

    def _mean(self, x: Float[Tensor, "n d"], domain: Int[Tensor, " n"], F: Float[Tensor, "M c"]) -> Float[Tensor, "n c"]:
        """sum_i w_i F_i [/ |P_x|], with one row of F for each base sample of all domains."""
        found, order = [], []
        for d, own in enumerate(self.parts):
            rows, base = (domain == d).nonzero()[:, 0], self.base[own]
            if len(rows):
                w = base.new_full((1, len(base)), 1 / len(base)) if self.weights is None else self.weights(x[rows], d, base)
                require(w.ndim == 2 and len(w) in (1, len(rows)) and w.shape[1] == len(base), "weights", got=f"shape {tuple(w.shape)}",
                        expected=f"(n, m) = {(len(rows), len(base))}, or (1, m)", cure="return a weight for each base sample")  # fmt: skip
                norm = w.new_ones(1, 1) if self.gram is None else ((w @ self.gram[own, own]) * w).sum(1, keepdim=True).sqrt()
                require(bool((norm > 0).all()), "normalize", expected=f"a mean embedding of domain {d} that is not 0", got="0",
                        cure="pass normalize=False, or b_std > 0")  # fmt: skip
                found.append((w @ F[own] / norm).expand(len(rows), -1))
                order.append(rows)
        return torch.cat(found)[torch.cat(order).argsort()]

    def _rows(self, x: object, domain: int | Tensor) -> tuple[Tensor, Tensor]:
        checked = samples("x", x, event=tuple(self.base.shape[1:]), least=1)
        rows, d = x if isinstance(x, Tensor) and x.requires_grad else checked, torch.as_tensor(domain, device=checked.device)
        same_dtype("base", self.base, "x", rows)
        require(d.shape in ((), (len(rows),)) and not d.is_floating_point() and bool(((d >= 0) & (d < len(self.parts))).all()), "domain",
                expected=f"whole numbers below {len(self.parts)}, one or one for each row", got=domain, cure="0 is the target")  # fmt: skip
        return rows, d.expand(len(rows))
