"""What the folders of runs hold, so that no command writes into the folder of another."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from driftway import store
from driftway.checks import require
from driftway.transport.checkpoint import CHECKPOINT

RUN, REPORT, STUDY, SPECTRUM, MODEL, CHECKPOINTS = "run.json", "report.html", "stop.json", "spectrum.safetensors", "model", "checkpoints"
KNOWN = (RUN, CHECKPOINT, store.CONFIG, store.TENSORS, MODEL, CHECKPOINTS, STUDY, SPECTRUM, REPORT)


def free(folder: Path, own: Collection[str] = (), *, cure: str = "name another folder") -> None:
    """An error if a folder holds a run, but for files that the command may find there.

    Raises:
        InputError: if it does.
    """
    taken = next((name for name in KNOWN if name not in own and (folder / name).exists()), None)
    require(taken is None, "out", expected="a folder without a run", got=f"{taken} in {folder}", cure=cure)


def noted(folder: Path) -> dict[str, Any]:
    """What a run has written of itself; nothing if there is none, or a damaged one."""
    try:
        held = json.loads((folder / RUN).read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return held if isinstance(held, dict) else {}


def note(path: Path, known: dict[str, Any]) -> None:
    """Write what is known as JSON."""
    store.write_file(path, (json.dumps({"version": store.VERSION, **known}, indent=2) + "\n").encode())
