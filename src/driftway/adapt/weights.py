"""Weights of base samples as a module, for networks that see a domain through them.

    w_d(x) = softmax_i((phi x)' A_d (phi b_i) + v_d' (phi b_i))

A = v = 0 are uniform weights, and A = 0 alone those that do not depend on x, as in importance weighting: what does not depend on i cancels.

Equations (A3), (A11): docs/derivations/adapt.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import count


class AttentionWeights(nn.Module):
    """w_d(x). It trains with the network that it is given to, unless `requires_grad_(False)` freezes it.

    Args:
        phi: (r, d) map of rows to features.
        A: one matrix for each domain, the target's first.
        v: one vector for each domain.
    """

    def __init__(self, phi: Float[Tensor, "r d"], A: Float[Tensor, "D r r"], v: Float[Tensor, "D r"]) -> None:
        super().__init__()
        self.phi, self.A, self.v = (nn.Parameter(tensor.detach().clone()) for tensor in (phi, A, v))

    @classmethod
    def uniform(cls, inputs: int, domains: int, *, generator: torch.Generator, features: int = 8,
                dtype: torch.dtype | None = None) -> "AttentionWeights":  # fmt: skip
        """Uniform weights, from which training can start.

        Args:
            inputs: columns of x.
            domains: their number, the target included.
            generator: of phi.
            features: r.
            dtype: that of the rows.

        Raises:
            InputError: if a number is not a whole number >= 1.
        """
        d, D, r = count("inputs", inputs), count("domains", domains), count("features", features)
        phi = torch.randn(r, d, generator=generator, dtype=dtype, device=generator.device) / d**0.5
        return cls(phi, phi.new_zeros(D, r, r), phi.new_zeros(D, r))

    def forward(self, x: Float[Tensor, "n d"], domain: int, base: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        return ((x @ self.phi.mT @ self.A[domain] + self.v[domain]) @ (base @ self.phi.mT).mT).softmax(1)
