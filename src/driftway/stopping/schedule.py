"""From the learning rates of a run to its training time eta, and back to steps and epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import count, numbers, real, require, shaped


@dataclass(frozen=True)
class Schedule:
    """The learning rates of a run: one number for all steps, or a list with one for each step, after which the run ends.

    A step moves eta by alpha = scale x learning rate. The scale belongs to the loss that is trained: 1 for (1/2n) |f - y|^2 and for
    cross entropies, 2 for the mean squared error without 1/2, and 2/k for torch.nn.MSELoss on k outputs.

    Attributes:
        rates: learning rates, positive (0 is allowed in a list, as at the start of a warm-up).
        scale: of the loss.
    """

    rates: float | int | Sequence[float]
    scale: float | int = 1.0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InputError: if a rate or the scale is not a positive finite number, or the list is empty.
        """
        real("scale", self.scale, least=0, strict=True)
        if self.constant:
            real("rates", self.rates, least=0, strict=True)
        else:
            require(numbers("rates", self.rates).numel() > 0, "rates", expected="a positive learning rate", got="none",
                    cure="pass one for each step")  # fmt: skip
            rates = shaped("rates", self.rates, (None,)).tolist()
            object.__setattr__(self, "rates", tuple(real("rates", rate, least=0) for rate in rates))
            require(sum(self.rates) > 0, "rates", expected="a positive learning rate", got="none", cure="pass one for each step")  # type: ignore[arg-type]

        largest = float(self.alpha.max())
        require(0 < largest < math.inf, "scale", expected="steps, scale x rates, of a size that float64 holds", got=f"{largest:g}",
                cure="choose another scale or other rates")  # fmt: skip

    @property
    def constant(self) -> bool:
        """Whether all steps are alike and the run has no end."""
        return isinstance(self.rates, float | int | np.number)

    @property
    def alpha(self) -> Float[Tensor, " steps"]:
        """The step sizes in units of eta; a single one if they are all alike."""
        return self.scale * torch.as_tensor(self.rates, dtype=torch.float64).reshape(-1)

    def eta(self, steps: int) -> float:
        """The time after so many steps.

        Raises:
            InputError: if steps is negative, or more than the list has.
        """
        steps, alpha = count("steps", steps, least=0), self.alpha
        if self.constant:
            return steps * float(alpha)
        require(steps <= len(alpha), "steps", expected=f"at most {len(alpha)}", got=steps, cure="pass a longer list of rates")
        return float(alpha[:steps].sum())

    def steps_for(self, eta: float | int) -> int | None:
        """The most steps that do not pass the time eta; None if the run never reaches it because eta is infinite.

        Raises:
            InputError: if eta is negative.
        """
        known = isinstance(eta, float | int | np.number) and eta >= 0
        require(known, "eta", expected="a time >= 0", got=eta, cure="pass the time of a Stop")
        near = eta * (1 + 1e-9)  # a time that was computed as a sum of steps counts as reached
        if self.constant:
            steps = near / float(self.alpha)
            return None if math.isinf(steps) else math.floor(steps)
        return int((self.alpha.cumsum(0) <= near).sum())

    def epochs_for(self, eta: float | int, n: int, batch: int) -> float | None:
        """The same in epochs of ceil(n / batch) steps.

        Args:
            eta: the time.
            n: rows of the training set.
            batch: rows of a step.

        Raises:
            InputError: if eta is negative, or n or batch are not whole numbers above 0.
        """
        steps = self.steps_for(eta)
        return None if steps is None else steps / math.ceil(count("n", n) / count("batch", batch))
