"""What several tests of the room share: small settings, models built by hand, and exact comparison of saved weights."""

from pathlib import Path

import torch
from torch import Tensor

from driftway import store
from driftway.transport import MixtureValue, NetworkValue, Problem, Settings, TransportModel, Value
from driftway.transport.scaler import Scaler

DOUBLE = torch.float64
SMALL = Settings(batch=32, candidates=48, width=12, depth=2, heads=4, components=5, mixture_batch=60)
FAMILIES = ("mixture", "network")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=rng(seed)).to(dtype)


def uneven(n: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of a law in the plane that no affine map of a normal has: bent, with two unequal clumps."""
    z = draw(n, 2, seed=seed)
    side = (torch.rand(n, generator=rng(seed + 1), dtype=DOUBLE) < 0.3)[:, None]
    bent = torch.stack([z[:, 0], 0.4 * z[:, 1] + z[:, 0].square() / 2], 1)
    return torch.where(side, bent.flip(1) - 3, bent + 1).to(dtype)


def mixture(d: int, *, components: int = 3, eps: float = 0.3, seed: int = 0) -> MixtureValue:
    """A mixture of unlike components, in double precision."""
    value = MixtureValue((d,), components=components, eps=eps).double().requires_grad_(False)
    value.eps.fill_(eps)
    for i, parameter in enumerate(value.parameters()):
        parameter.copy_(0.4 * draw(*parameter.shape, seed=seed + i))
    return value


def network(d: int, *, seed: int = 0) -> NetworkValue:
    """A network of uneven pieces, in double precision."""
    value = NetworkValue((d,), width=12, depth=2, heads=4).double().requires_grad_(False)
    for i, parameter in enumerate(value.parameters()):
        parameter.copy_(0.5 * draw(*parameter.shape, seed=seed + i))
    return value


def model_of(value: Value, *, sigma: float = 0.0, noise: bool = True, shift: float = 0.0, scale: float = 1.0,
             dtype: torch.dtype = DOUBLE) -> TransportModel:  # fmt: skip
    """A model around a value that was not trained: what holds for any value is tested on these."""
    d = value.event[0]
    affine = (torch.full((d,), z, dtype=dtype) for z in (shift, scale))
    scaler = Scaler((d,), noise, *affine, torch.zeros(d, dtype=torch.bool))
    family = "mixture" if isinstance(value, MixtureValue) else "network"
    shape = {"components": len(value.u)} if isinstance(value, MixtureValue) else {"width": 12, "depth": 2, "heads": 4}
    return TransportModel(value.to(dtype), Problem(sigma=sigma), scaler, family, shape)


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a finished run."""
    return store.read_tensors("folder", folder / store.TENSORS)[1]


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit by bit, NaN equal to nothing."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
