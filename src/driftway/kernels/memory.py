"""How much memory there is, and blocks of rows that fit into a part of it."""

import os
from pathlib import Path

import torch

from driftway.checks import InputError, real

GIB = 2**30
COPIES = 4  # arrays of the size of a block that a kernel may hold while it computes one
CACHE = 2**24  # bytes of a block on a CPU; measured between 2 MiB and 256 MiB


def row_slices(n: int, width: int, *, memory: float | int, device: torch.device) -> list[slice]:
    """Slices of n rows, so that the work on one of them, `width` entries wide, takes at most `memory` GiB.

    On a CPU slices are smaller than that where it is faster: fresh arrays much beyond the cache cost more than the work on them.

    Raises:
        InputError: if memory is not a positive number.
    """
    limit = real("memory", memory, least=0.0, strict=True) * GIB / (8 * COPIES * width)
    if device.type == "cpu":
        limit = min(limit, max(32, CACHE / (8 * width)))
    step = max(1, int(limit))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes that are free on a device; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def require_memory(argument: str, needed: int, cure: str, *, device: torch.device | str = "cpu") -> None:
    """Refuse work that cannot fit.

    Args:
        argument: what is too large.
        needed: bytes that the work takes.
        cure: which option or function needs less.
        device: where.

    Raises:
        InputError: if fewer bytes are free.
    """
    free = available_memory(device)
    if free is not None and needed > free:
        raise InputError(argument, expected=f"what fits into {free / GIB:.3g} GiB, the free memory of {device}",
                         got=f"{needed / GIB:.3g} GiB to hold", cure=cure)  # fmt: skip
