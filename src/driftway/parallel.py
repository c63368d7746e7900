"""Several processes of one job, through Hugging Face Accelerate.

Who shares out which work stands where the work is: `transport.learner` shares out the rows of a batch, `kernels.tangent` the batches
of a data set and the parts of a Gram matrix.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from driftway.checks import InputError

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Group:
    """The processes of a run.

    Attributes:
        rank: number of this process.
        size: number of processes R.
        accelerator: what they talk through; None for one process.
    """

    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def own(self, rows: Tensor) -> Tensor:
        """Every R-th row, from the row of this process's number."""
        return rows[self.rank :: self.size]

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace tensors, gradients of this process, by their means over the processes."""
        if self.size == 1:
            return
        own = [tensor for tensor in tensors if tensor is not None]
        means = self.accelerator.reduce(torch.cat([tensor.flatten() for tensor in own]), reduction="mean")
        for tensor, mean in zip(own, means.split([tensor.numel() for tensor in own]), strict=True):
            tensor.copy_(mean.reshape(tensor.shape))

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, the same in all of them."""
        return tensor if self.size == 1 else self.accelerator.reduce(tensor, reduction="sum")

    def gather(self, thing: Thing) -> list[Thing]:
        """What each process holds, in the order of their numbers; tensors in it must be on the CPU."""
        if self.size == 1:
            return [thing]
        from accelerate.utils import gather_object

        return gather_object([thing])

    def mean(self, numbers: list[float], like: Tensor) -> list[float]:
        """Means of numbers over the processes, the same in all of them."""
        if self.size == 1:
            return numbers
        return self.accelerator.reduce(torch.tensor(numbers, dtype=torch.float64, device=like.device), reduction="mean").tolist()


def launched() -> Group:
    """The group that `accelerate launch` (or torchrun) started this process in; one process if none did.

    Raises:
        InputError: if there are several processes and Accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group()
    try:
        from accelerate import Accelerator
    except ImportError:
        raise InputError("WORLD_SIZE", expected="Accelerate for several processes", got=f"{os.environ['WORLD_SIZE']} processes without it",
                         cure="pip install 'driftway[accelerate]'") from None  # fmt: skip
    accelerator = Accelerator()
    return Group(accelerator.process_index, accelerator.num_processes, accelerator)
