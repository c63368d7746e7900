"""Toy laws, each the image of the unit cube under one map T, so that random and stratified points have the same law.

    sample:  x_i = T(u_i)   u_i uniform on [0,1]^k, independent
    quasi:   x_i = T(u_i)   u_1..u_n the points of a scrambled Sobol net on [0,1]^k: each u_i is uniform, all n fill the cube

The first coordinate of the cube chooses the mode or the place on the curve, and Phi^-1 (the normal quantile function) makes
Gaussian noise of the others. With z = Phi^-1(u) and a_j = pi j/4,

    standard_normal(d)   x = z                                                                            k = d
    eight_gaussians      x = 5 (cos a_j, sin a_j) + sqrt(0.1) z        j = floor(8 u_1)                   k = 3
    moons                x = 3 (c + 0.2 z) - 1                         k = 3
                             c = (cos a, sin a)         a = 2 pi u_1        u_1 < 1/2     (outer half-circle)
                             c = (1 - cos a, 1/2 - sin a)   a = 2 pi u_1 - pi   otherwise (inner half-circle)
    s_curve              x = 1.5 (c + 0.05 z)   c = (sin a, sign(a)(cos a - 1))   a = 3 pi (u_1 - 1/2)    k = 3

Several definitions circulate under these names. Here moons and s_curve are scikit-learn's continuous laws (of its S curve,
coordinates 0 and 2), shifted and scaled as above.

Source: Owen (1998), J. Complexity 14, scrambled nets; Pedregosa et al. (2011), scikit-learn, `make_moons`, `make_s_curve`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import count, require

_EDGE = 2.0**-53  # keeps the normal quantiles finite
_HALF = 2.0**-31  # half the spacing of Sobol points, which start at 0


@dataclass(frozen=True)
class Law:
    """A probability law on R^dim.

    Args:
        name: what tables and plots call it.
        dim: the dimension d of its samples.
        cube: the dimension k of the unit cube that it is an image of.
        image: the map T from points of the cube (n, k) to samples (n, d), row by row.
    """

    name: str
    dim: int
    cube: int
    image: Callable[[Tensor], Tensor]

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n {self.dim}"]:
        """Draw n independent samples, float32, on the generator's device.

        Raises:
            InputError: if n is not a whole number >= 1.
        """
        u = torch.rand(count("n", n), self.cube, generator=generator, device=generator.device, dtype=torch.float64)
        return self._push(u)

    def quasi(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n {self.dim}"]:
        """Draw n stratified samples, float32: each has this law, and together they miss it by less than independent ones.

        Their order is random, so rows of two draws may be paired.

        Raises:
            InputError: if n is not a power of two.
        """
        n = count("n", n)
        require(n & (n - 1) == 0, "n", expected="a power of two", got=n, cure=f"pass n={1 << (n.bit_length() - 1)}")
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        sobol = torch.quasirandom.SobolEngine(self.cube, scramble=True, seed=int(seed))
        u = (sobol.draw(n, dtype=torch.float64) + _HALF).to(generator.device)
        return self._push(u[torch.randperm(n, generator=generator, device=generator.device)])

    def _push(self, u: Float[Tensor, "n {self.cube}"]) -> Float[Tensor, "n {self.dim}"]:
        return self.image(u.clamp(_EDGE, 1 - _EDGE)).to(torch.float32)


def standard_normal(dim: int) -> Law:
    """N(0, I) on R^dim.

    Raises:
        InputError: if dim is not a whole number >= 1.
    """
    dim = count("dim", dim)
    return Law("normal", dim, dim, torch.special.ndtri)


def _eight_gaussians(u: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
    a = math.pi / 4 * torch.floor(8 * u[:, 0])
    return 5 * torch.stack([torch.cos(a), torch.sin(a)], 1) + math.sqrt(0.1) * torch.special.ndtri(u[:, 1:])


def _moons(u: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
    a = 2 * math.pi * u[:, 0]  # past pi, cos(a - pi) = -cos a and sin(a - pi) = -sin a: the same formula, moved
    outer = torch.stack([torch.cos(a), torch.sin(a)], 1)
    c = torch.where(u[:, :1] < 0.5, outer, outer + torch.tensor([1.0, 0.5]).to(u))
    return 3 * (c + 0.2 * torch.special.ndtri(u[:, 1:])) - 1


def _s_curve(u: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
    a = 3 * math.pi * (u[:, 0] - 0.5)
    c = torch.stack([torch.sin(a), torch.sign(a) * (torch.cos(a) - 1)], 1)
    return 1.5 * (c + 0.05 * torch.special.ndtri(u[:, 1:]))


eight_gaussians = Law("8gaussians", 2, 3, _eight_gaussians)
moons = Law("moons", 2, 3, _moons)
s_curve = Law("scurve", 2, 3, _s_curve)

PAIRS: dict[str, tuple[Law, Law]] = {
    "normal-8gaussians": (standard_normal(2), eight_gaussians),
    "normal-moons": (standard_normal(2), moons),
    "normal-scurve": (standard_normal(2), s_curve),
    "moons-8gaussians": (moons, eight_gaussians),
}
