"""A run on disk: one safetensors file, replaced atomically, from which training continues bit by bit."""

from dataclasses import asdict
from pathlib import Path

import torch

from driftway import store
from driftway.checks import InputError, require
from driftway.parallel import Group
from driftway.transport.condition import Conditions
from driftway.transport.intake import Data, Labels, batched, open_stream
from driftway.transport.learner import Settings
from driftway.transport.problem import Problem
from driftway.transport.run import ALONE, Plan, Run, start_run
from driftway.transport.scaler import Scaler
from driftway.transport.stream import Batch

CHECKPOINT = "checkpoint.safetensors"
KIND = "driftway.transport.run"


def save_run(folder: Path, run: Run) -> None:
    """Write the checkpoint, atomically."""
    learner = run.learner
    tensors = {f"value.{n}": z for n, z in learner.value.state_dict().items()}
    tensors |= {f"average.{n}": z for n, z in learner.average.state_dict().items()}
    for i, moments in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": z for name, z in moments.items()}
    tensors |= {**run.scaler.tensors(), "held.source": run.held[0], "held.target": run.held[1].x}
    tensors |= {} if run.held[1].c is None else {"held.labels": run.held[1].c}
    plan = {**asdict(run.plan), "problem": asdict(run.plan.problem), "settings": asdict(run.plan.settings)}
    config = {
        "kind": KIND, "plan": plan, "family": run.family, "scaler": {"event": list(run.scaler.event), "noise": run.scaler.noise},
        "conditions": asdict(run.conditions), "eps": run.eps, "given": run.given,
        "index": run.index, "seconds": run.seconds, "history": run.history,
        "streams": [run.source.state(), run.target.state()], "digests": [run.source.digest(), run.target.digest()],
    }  # fmt: skip
    store.write_tensors(folder / CHECKPOINT, tensors, config)


def load_run(folder: Path, source: Data | None, target: Data, *, labels: Labels = None, source_labels: Labels = None,
             group: Group = ALONE) -> Run:  # fmt: skip
    """The run that a checkpoint holds, on the data it was begun with.

    Raises:
        InputError: if there is no whole checkpoint, its version is unknown, or the data is not what the run was begun with.
    """
    config, tensors = store.read_tensors("resume", folder / CHECKPOINT)
    require(config.get("kind") == KIND, "resume", expected="a transport run", got=config.get("kind"), cure="name another folder")
    try:
        settings, was_given = config["plan"]["settings"], config["given"]
        if set(settings) != set(asdict(Settings())):
            raise TypeError(f"settings {', '.join(sorted(set(settings) ^ set(asdict(Settings()))))}")
        plan = Plan(**{**config["plan"], "problem": Problem(**config["plan"]["problem"]), "settings": Settings(**settings)})
    except (TypeError, KeyError) as error:
        raise InputError("resume", expected="a run of this release", got=f"one of another ({error})",
                         cure="continue it with the release that began it") from None  # fmt: skip
    device = open_stream("target", target, seed=plan.seed, labelled=batched(labels)).probe().x.device  # tensors are read to the CPU
    tensors = {name: z.to(device) if name.startswith(("scaler.", "held.")) else z for name, z in tensors.items()}
    scaler = Scaler.of(tensors, config["scaler"])
    require(scaler.noise == (source is None), "source", expected="none, as in the run" if scaler.noise else "the run's source data",
            got="data" if source is not None else "none", cure="pass what the run was begun with")  # fmt: skip
    held = (tensors["held.source"], Batch(tensors["held.target"], tensors.get("held.labels")))
    given = (None if scaler.noise else held[0], held[1]) if was_given else None
    conditions = Conditions.of(config["conditions"])
    require(conditions.known == (labels is not None), "labels", expected="the run's labels" if conditions.known else "none, as in the run",
            got="none" if labels is None else "labels", cure="pass what the run was begun with")  # fmt: skip
    run = start_run(plan, source, target, given, labels=labels, source_labels=source_labels, conditions=conditions, scaler=scaler,
                    eps=tuple(config["eps"]), family=config["family"], group=group)  # fmt: skip
    for name, stream, digest in zip(("source", "target"), (run.source, run.target), config["digests"], strict=True):
        require(stream.digest() == digest, name, expected=f"the data that the run in {folder} was begun with",
                got="other data", cure="pass the same data, or start a new run in another folder")  # fmt: skip
    for module, prefix in ((run.learner.value, "value."), (run.learner.average, "average.")):
        module.load_state_dict({n.removeprefix(prefix): z for n, z in tensors.items() if n.startswith(prefix)})
    state = run.learner.optimizer.state_dict()
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = tensor
    run.learner.optimizer.load_state_dict({**state, "state": moments})
    run.source.restore(config["streams"][0])
    run.target.restore(config["streams"][1])
    run.held, run.index, run.seconds, run.history = held, config["index"], config["seconds"], config["history"]
    return run


def held_rows(folder: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The held-out source and target rows of the run in a folder, in the units of the data.

    Raises:
        InputError: if there is no whole checkpoint.
    """
    _, tensors = store.read_tensors("folder", Path(folder) / CHECKPOINT)
    return tensors["held.source"], tensors["held.target"]


def held_labels(folder: str | Path) -> list[int | str] | None:
    """The labels of the held-out target rows; None for a run without classes, or whose held-out rows were given without labels.

    Raises:
        InputError: if there is no whole checkpoint.
    """
    config, tensors = store.read_tensors("folder", Path(folder) / CHECKPOINT)
    classes = config.get("conditions", {}).get("classes", [])
    return [classes[i] for i in tensors["held.labels"].tolist()] if classes and "held.labels" in tensors else None
