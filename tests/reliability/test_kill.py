"""kill -9 at any moment: what is on the disk is whole or refused, and the job, resumed or begun again, ends as if nothing had happened.

Each job runs once undisturbed, and its moments are counted (`jobs`). Then it dies at moments of its first life and of those that
continue it, before a file is changed or in the middle of that, and at times by the clock.
"""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from driftway import store
from driftway.adapt.folder import load
from driftway.checks import InputError
from driftway.cli import adapt as _adapt  # noqa: F401 (children inherit what is imported)
from driftway.cli import transport as _transport  # noqa: F401
from driftway.cli.folders import CHECKPOINTS, MODEL, RUN, STUDY
from driftway.cli.predicting import predict
from driftway.transport import TransportModel
from driftway.transport.checkpoint import CHECKPOINT
from tests.reliability import jobs
from tests.reliability.jobs import Moments


@dataclass(frozen=True)
class Job:
    """A long job.

    Attributes:
        name: in the table of counts.
        work: what a child calls.
        args: of it in a folder; they resume what can be resumed.
        result: of a finished folder, to compare.
        loaded: a result that can be read from a folder whose job was killed; None if it is refused, as it must be before the end.
        kills: of one run, at most, before it is let go.
    """

    name: str
    work: Callable[..., None]
    args: Callable[[Path], list[Any]]
    result: Callable[[Path], Any]
    loaded: Callable[[Path], Any]
    kills: int

    def live(self, folder: Path, moments: Moments | None = None) -> jobs.Ended:
        return jobs.run(folder, self.work, *self.args(folder), moments=moments)


def alike(a: Any, b: Any) -> bool:
    """To the bit, a gap equal to a gap."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(alike(a[name], b[name]) for name in a)
    if isinstance(a, torch.Tensor):
        a, b = a.numpy(), b.numpy()
    return np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else a == b


def refused(read: Callable[[], Any]) -> Any:
    """What is read; None for an `InputError`."""
    try:
        return read()
    except InputError:
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("kill")


@pytest.fixture(scope="module")
def transport(place):
    target = jobs.moved(place / "target.csv")

    def result(folder):
        config, weights = store.read_tensors("folder", folder / store.TENSORS)
        return {"weights": weights, "history": [[row[0], *row[2:]] for row in config["training"]["history"]]}

    def loaded(folder):
        TransportModel.load(folder)
        return result(folder)

    return Job("transport fit", jobs.command, lambda folder: jobs.transport(target, folder, *["--resume"] * (folder / CHECKPOINT).exists()),
               result, loaded, 3)  # fmt: skip


@pytest.fixture(scope="module")
def gram(place):
    def result(folder):
        return np.load(folder.with_suffix(".npy"))

    return Job("tangent_gram with a cache", jobs.gram, lambda folder: [folder, folder.with_suffix(".npy")], result,
               lambda folder: result(folder) if folder.with_suffix(".npy").exists() else None, 3)  # fmt: skip


@pytest.fixture(scope="module")
def adapt(place):
    source, target = jobs.houses(place / "source.csv", 20, seed=0, labels=20), jobs.houses(place / "rows.csv", 16, seed=1, labels=8)

    def result(folder):
        config, weights = store.read_folder("folder", folder)
        return {"weights": weights, "config": config, "verdict": jobs.known(folder / RUN, "command", "options"),
                "predictions": predict(folder, target, 0.9).values}  # fmt: skip

    def loaded(folder):
        load(folder)
        return result(folder)

    return Job("adapt fit", jobs.command, lambda folder: jobs.adapt(source, target, folder), result, loaded, 1)


@pytest.fixture(scope="module")
def finetune(place, model):
    from driftway.cli import finetune, training  # noqa: F401

    data = jobs.texts(place / "texts.csv")

    def result(folder):
        return {"weights": load_file(folder / MODEL / "model.safetensors"), "run": jobs.known(folder / RUN, "options")}

    def loaded(folder):
        return load_file(folder / MODEL / "model.safetensors") if (folder / MODEL).exists() else None

    return Job("finetune run", jobs.command, lambda folder: jobs.finetune(model, data, folder, *["--resume"] * (folder / RUN).exists()),
               result, loaded, 2)  # fmt: skip


@pytest.fixture(scope="module")
def stop(place, model):
    from driftway.cli import finetune  # noqa: F401

    data = jobs.texts(place / "texts.csv")

    def result(folder):
        return jobs.known(folder / STUDY, "command", "options")

    return Job("finetune stop", jobs.command, lambda folder: jobs.finetune(model, data, folder, kind="stop"), result, lambda _: None, 1)


NAMES = ("transport", "gram", "adapt", "finetune", "stop")
BOUNDED = {"transport": 1, "gram": 5, "adapt": 2, "finetune": 1, "stop": 0}  # runs; 20 in full
whole: dict[str, tuple[Any, int]] = {}


@pytest.fixture
def job(request) -> Job:
    return request.getfixturevalue(request.param)


def undisturbed(job: Job, place: Path) -> tuple[Any, int]:
    """The result and the number of moments of a run that nobody kills."""
    if job.name not in whole:
        ended = job.live(place / f"{job.name}-whole")
        assert ended.code == 0, ended.said
        whole[job.name] = job.result(place / f"{job.name}-whole"), ended.moments
    return whole[job.name]


def finished(ended: jobs.Ended) -> bool:
    """Whether a job came to its end, or found that one before it had, which was killed after that."""
    return ended.code == 0 or (ended.code == 2 and ("a finished one" in ended.said or "a folder without a run" in ended.said))


def lived(job: Job, folder: Path, known: Any, *, kills: list[Callable[[], jobs.Ended]]) -> tuple[int, bool]:
    """Kill a run so often, check what is on the disk after each, let it end; how many kills hit, and whether the result is the same."""
    hits = 0
    for kill in kills:
        ended = kill()
        if finished(ended):
            break
        assert ended.code == -signal.SIGKILL, ended.said
        hits += 1
        half = refused(lambda: job.loaded(folder))
        assert half is None or alike(half, known["weights"] if job.name == "finetune run" else known), "half of a result is read"
    else:
        ended = job.live(folder)
        assert finished(ended), ended.said
    left = [path for path in folder.rglob("*") if path.name.endswith(".part") or path.name in (store.LOCK, CHECKPOINTS)]
    assert not left
    return hits, alike(job.result(folder), known)


@pytest.mark.parametrize("job", NAMES, indirect=True)
def test_killed_at_a_change_of_its_folder(job, request, place, rounds, tally):
    n = rounds(BOUNDED[request.node.callspec.params["job"]], 6 if job.name == "finetune stop" else 20)
    if n == 0:
        pytest.skip("in full only")
    known, moments = undisturbed(job, place)
    chance = random.Random(job.name)
    first = [1 + int((i + chance.random()) * moments / n) for i in range(n)]  # all parts of its life
    hits = same = 0
    for i, at in enumerate(first):
        folder = place / f"{job.name}-{i}"
        later = [chance.randint(1, moments // 2) for _ in range(chance.randint(0, job.kills - 1) if n > 1 else (job.kills - 1) // 2)]
        more, equal = lived(job, folder, known, kills=[
            lambda at=at, half=half, folder=folder: job.live(folder, Moments(folder, at, half=half))
            for half, at in ((bool((i + j) % 2), at) for j, at in enumerate([at, *later]))])  # fmt: skip
        hits, same = hits + more, same + equal
    assert hits >= n
    tally(f"kill -9 at a change: {job.name}, {hits} kills, the same result", same, n)


@pytest.mark.parametrize("job", NAMES[:4], indirect=True)
def test_killed_by_the_clock(job, place, rounds, tally):
    """At a time of its life, drawn evenly; a second kill when a file is half-written."""
    n = rounds(0, 10)
    if n == 0:
        pytest.skip("in full only: moments by the clock cost whole lives")
    known, _ = undisturbed(job, place)
    begun = time.monotonic()
    assert job.live(place / f"{job.name}-timed").code == 0
    lasts, chance, hits, same = time.monotonic() - begun, random.Random(job.name), 0, 0

    def timed(folder, delay):
        child = jobs.begin(folder, job.work, *job.args(folder))
        child.process.join(delay)
        return child.kill() if child.process.is_alive() else child.wait()

    def writing(folder):
        child = jobs.begin(folder, job.work, *job.args(folder))
        child.until(lambda: any(folder.rglob("*.part")) or any(folder.rglob("optimizer.pt")))
        return child.kill() if child.process.is_alive() else child.wait()

    for i in range(n):
        folder = place / f"{job.name}-by-time-{i}"
        delay = chance.uniform(0, lasts)
        more, equal = lived(job, folder, known, kills=[lambda: timed(folder, delay), lambda: writing(folder)])  # noqa: B023
        hits, same = hits + more, same + equal
    tally(f"kill -9 by the clock: {job.name}, {hits} kills, the same result", same, n)
