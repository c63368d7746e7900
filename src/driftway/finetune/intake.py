"""What a training run holds, as the probe needs it: rows and labels, future learning rates, and how it departs from plain descent."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from driftway.checks import InputError, require

PASS = 16  # rows of a pass
LABELS = ("labels", "label")


def dataset(loader: Any) -> Any:
    """The training rows.

    Raises:
        InputError: if there are none, or they come as a stream.
    """
    data = getattr(loader, "dataset", None)
    require(data is not None, "train_dataset", expected="training rows", got="none", cure="pass train_dataset to the Trainer")
    size = None
    with suppress(TypeError, AttributeError):
        size = len(data)  # type: ignore[arg-type]
    if size is None or not hasattr(data, "__getitem__"):
        raise InputError("train_dataset", expected="a data set with a length and rows by number", got=f"the stream {type(data).__name__}",
                         cure="load it as a map-style data set, or train without the callback")  # fmt: skip
    return data


def collated(loader: Any, rows: list[int]) -> tuple[list[dict[str, Any]], Tensor]:
    """Batches of inputs, and the labels of all rows.

    Raises:
        InputError: if there is not one label for each row.
    """
    batches, labels = [], []
    for start in range(0, len(rows), PASS):
        batch = loader.collate_fn([loader.dataset[i] for i in rows[start : start + PASS]])
        named = batch if isinstance(batch, Mapping) else {}
        label = next((named[name] for name in LABELS if name in named), None)
        if not isinstance(label, Tensor):
            raise InputError("train_dataset", expected="a column labels", got=f"columns {', '.join(named) or type(batch).__name__}",
                             cure="give each row one label, under the name labels")  # fmt: skip
        batches.append({name: entry for name, entry in batch.items() if name not in LABELS})
        labels.append(label.reshape(-1) if label.ndim == 0 else label)
    widths = {tuple(label.shape[1:]) for label in labels}
    if len(widths) > 1 or any(len(width) > 1 for width in widths):
        raise InputError("model", expected="one label for each row", got=f"labels of shape {tuple(labels[0].shape)}",
                         cure="SpectralStopping is for classification and regression of whole rows, not for tokens")  # fmt: skip
    return batches, torch.cat(labels)


def rates(lr_scheduler: Any, optimizer: Any, steps: int) -> tuple[list[float], list[str]]:
    """The learning rate of each step, and a sentence where it had to be guessed."""
    inner = getattr(lr_scheduler, "scheduler", lr_scheduler)
    lambdas = getattr(inner, "lr_lambdas", None)
    if lambdas:
        return [float(inner.base_lrs[0] * lambdas[0](step)) for step in range(steps)], []
    lr = float(optimizer.param_groups[0]["lr"])
    return [lr] * steps, [f"the schedule {type(inner).__name__} does not tell future learning rates: steps are counted at the present one; "
                          "the stop itself, which is a time, is not affected"]  # fmt: skip


def unlike(args: Any, optimizer: Any, metric: str) -> list[str]:
    """How training differs from the descent of the theory, under an optimizer of this metric."""
    found, groups = [], optimizer.param_groups
    if len({float(group["lr"]) for group in groups if group["params"]}) > 1:
        found.append("groups of parameters have different learning rates: eta counts those of the first group")
    if any(group.get("weight_decay", 0) for group in groups):
        found.append("weight decay pulls to zero and is not part of the flow")
    if groups[0].get("momentum", 0) and metric == "gradient":
        found.append("momentum counts as steps of lr / (1 - momentum)")
    if args.label_smoothing_factor:
        found.append("labels are smoothed: the kernel's residual is that of plain labels")
    unseen = args.world_size > 1 or args.fp16
    if args.max_grad_norm and (metric == "gradient" or (metric == "adam" and unseen)):
        how = "and not seen here (several processes, or fp16): eta may be too large" if unseen else (
            "and shorten their steps, which eta counts and the predicted step does not; max_grad_norm=0 switches it off")  # fmt: skip
        found.append(f"gradients above max_grad_norm={args.max_grad_norm:g} are clipped, {how}")
    return found
