"""A fitted estimator as a folder: parameters, rows and what was learned, as text and tensors; no pickle (see `driftway.store`).

    config      class, parameters, names, and for each process and each model built on it what its tensors do not say
    shift.*     all rows, in the user's order
    frame.F.*   labelled rows as a process sees them
    process.P.* parameters as they were learned, correlations or base samples
    model.M.*   of a trained network: residuals and variances of the target's labels

Matrices are not kept. Loading computes them again from the same numbers in the same order, and predicts the same up to rounding. Of
what is read, everything is checked: a folder that was changed is refused by the name of what is wrong in it. A new kind of process is one
more entry of `KINDS`, and a new layout another `FORMAT`. The folder holds the training rows: who has it has the data.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftway import store
from driftway.adapt import estimators, estimators_auto
from driftway.adapt.dino_train import Trained, train
from driftway.adapt.distribution_kernel import FORMS, Attention, Correlation, Domains, Embedded, Rows, base
from driftway.adapt.estimators_base import DomainRegressor
from driftway.adapt.family import Family
from driftway.adapt.frame import Frame
from driftway.adapt.learn import Learned, learn
from driftway.adapt.scale import TRAINED, Scale, held
from driftway.adapt.shift import Shift
from driftway.adapt.stacking import Candidate, candidate
from driftway.adapt.stored import CURE, Reader, plain, unplain
from driftway.checks import InputError, require
from driftway.kernels import FullyConnected, Network, gradient_flow
from driftway.linalg import eigendecompose

FORMAT = 1
CLASSES = {made.__name__: made for made in (
    estimators.TargetOnlyGP, estimators.PooledGP, estimators.TransferGPRegressor, estimators.ReweightedGP, estimators.MeanEmbeddingGP,
    estimators.DINOInitRegressor, estimators.DINOTrainRegressor, estimators_auto.AutoTransferRegressor)}  # fmt: skip
FRAME = {"aim": "td", "y": "nk", "weight": "n", "x_mean": "d", "x_scale": "d", "y_mean": "k", "y_scale": "k"}
Tensors = dict[str, Tensor]


def save(estimator: Any, folder: str | Path) -> None:
    """Write a fitted estimator, atomically.

    Args:
        estimator: one of the regressors of this room.
        folder: made if need be.

    Raises:
        InputError: if the estimator is none of them, not fitted, or has a parameter that is no text, number or list of these.
        OSError: if the folder cannot be written.
    """
    known = isinstance(estimator, DomainRegressor) and type(estimator).__name__ in CLASSES and hasattr(estimator, "model_")
    require(known, "estimator", expected=f"a fitted one of {', '.join(CLASSES)}", got=type(estimator).__name__, cure="call its fit first")
    shift: Shift = estimator.shift_
    models = estimator.model_ if isinstance(estimator.model_, list) else [candidate("", estimator.model_)]
    processes = list({id(own.process): own.process for own in models}.values())
    frames = list({id(process.frame): process.frame for process in processes}.values())
    config: dict[str, Any] = {
        "format": FORMAT, "class": type(estimator).__name__,
        "parameters": {name: plain(name, value) for name, value in estimator.get_params(deep=False).items()},
        "shift": {"codes": list(shift.codes), "names": list(shift.names), "flat": shift.flat, "stated": shift.stated},
        "columns": hasattr(estimator, "feature_names_in_"), "pandas": estimator._pandas,
        "outputs": plain("y", getattr(estimator._names, "tolist", lambda: estimator._names)()),
        "frames": len(frames), "processes": [], "models": [],
    }  # fmt: skip
    tensors: Tensors = {f"shift.{name}": getattr(shift, name) for name in ("X", "y", "domain", "weight")}
    for i, rows in enumerate(frames):
        tensors |= {f"frame.{i}.X": rows.rows.X, f"frame.{i}.domain": rows.rows.domain}
        tensors |= {f"frame.{i}.{name}": getattr(rows, name) for name in FRAME}
    for i, process in enumerate(processes):
        kind, about, parts = _domains_written(process.kernel.domains)
        parts |= {f"raw.{name}": value for name, value in process.raw.items()}
        about |= {"network": _network_written(process.kernel.network), "scale": asdict(process.scale), "objective": process.objective,
                  "evaluations": process.evaluations}  # fmt: skip
        config["processes"].append({"kind": kind, "frame": _place(frames, process.frame), **about})
        tensors |= {f"process.{i}.{name}": value for name, value in parts.items()}
    for i, own in enumerate(models):
        entry = {"name": own.name, "process": _place(processes, own.process), "trained": None}
        if isinstance(own.model, Trained):
            entry["trained"] = {"time": plain("", own.model.time), "rule": own.model.rule}
            tensors |= {f"model.{i}.residuals": own.model.residuals, f"model.{i}.spread": own.model.spread}
        config["models"].append(entry)
    store.write_folder(Path(folder), {name: value.clone() for name, value in tensors.items()}, config)  # some share memory


def load(folder: str | Path) -> DomainRegressor:
    """Read a fitted estimator.

    Raises:
        InputError: if the folder is missing, damaged or changed: an unknown class or parameter, a tensor that lacks or is too much, has
            another shape or dtype, or numbers that cannot be.
    """
    config, tensors = store.read_folder("folder", Path(folder))
    read = Reader(str(folder), config, tensors)
    try:
        return _load(read)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage] (torch documents it)
        raise InputError("folder", expected=f"numbers that can be computed with in {folder}", got=str(error), cure=CURE) from None


def _load(read: Reader) -> DomainRegressor:
    require(read.config.get("format") == FORMAT, "folder", expected=f"an estimator in format {FORMAT}",
            got=f"format {read.config.get('format')!r}", cure="load it with the driftway release that wrote it, or fit again")  # fmt: skip
    made: Any = CLASSES[read.named("class", tuple(CLASSES))]
    estimator = made()
    given, own = read.entry("parameters", dict), estimator.get_params(deep=False)
    read.check(set(given) == set(own), f"parameters {', '.join(own)}", ", ".join(map(str, given)))
    for name, value in given.items():
        read.check(isinstance(value, list) == isinstance(own[name], tuple) and not isinstance(value, dict), f"a parameter {name} like "
                   f"{own[name]!r}", repr(value))  # fmt: skip
    estimator.set_params(**{name: unplain(value) for name, value in given.items()})
    estimator._settings()  # checks them
    shift = _shift_read(read)
    frames = [_frame_read(read, i, shift) for i in range(read.entry("frames", int))]
    processes = [_process_read(read.part("processes", i), i, frames, shift) for i in range(read.length("processes"))]
    models = [_model_read(read.part("models", i), i, processes) for i in range(read.length("models"))]
    several = made is estimators_auto.AutoTransferRegressor
    read.check(len(models) > 0 and (several or len(models) == 1), "one model" + " or more" * several, str(len(models)))
    read.check(several or (models[0].trained == (made is estimators.DINOTrainRegressor)), "the model of its class", "another")
    read.finish()
    estimator.shift_, estimator.n_features_in_ = shift, len(shift.names)
    if read.entry("columns", bool):
        estimator.feature_names_in_ = np.array(shift.names, dtype=object)
    outputs = read.config.get("outputs")
    fits = len(outputs) == shift.outputs if isinstance(outputs, list) else shift.flat and isinstance(outputs, str | int)
    read.check(outputs is None or fits, "names of the outputs", repr(outputs))
    estimator._pandas, estimator._names = read.entry("pandas", bool), outputs
    estimator.model_ = models if several else models[0].model
    with torch.no_grad():
        estimator._describe()
    return estimator


def _place(values: list[Any], value: Any) -> int:
    return next(i for i, other in enumerate(values) if other is value)


def _shift_read(read: Reader) -> Shift:
    about = read.inside("shift")
    codes, names = about.numbers("codes"), about.texts("names")
    read.check(len(codes) > 0 and codes[0] < 0 < min((*codes[1:], 1)), "codes of a target and its sources", str(codes))
    X = read.take("shift.X", (None, len(names)))
    y = read.take("shift.y", (len(X), None), gaps=True)
    domain = read.domains("shift.domain", len(X), len(codes))
    weight = read.take("shift.weight", (len(X),), least=0.0)
    gap = y.isnan()
    read.check(bool((gap.all(1) == gap.any(1)).all() and not gap[domain > 0].any() and y.shape[1] > 0), "a label in every source row, and "
               "all outputs of a label", "gaps in shift.y")  # fmt: skip
    flat = about.entry("flat", bool)
    read.check(not flat or y.shape[1] == 1, "one output where y was flat", f"{y.shape[1]}")
    return Shift(X, y, domain, weight, tuple(codes), tuple(names), flat, about.entry("stated", bool))


def _frame_read(read: Reader, i: int, shift: Shift) -> Frame:
    X = read.take(f"frame.{i}.X", (None, len(shift.names)))
    domain = read.domains(f"frame.{i}.domain", len(X), len(shift.codes))
    sizes, m = {"n": len(X), "d": len(shift.names), "k": shift.outputs, "t": None}, int((domain == 0).sum())
    read.check(bool((domain[len(domain) - m :] == 0).all()), f"rows of the target last in frame.{i}", "another order")
    least: dict[str, float] = {"weight": 0.0, "x_scale": 0.0, "y_scale": 0.0}
    parts = {name: read.take(f"frame.{i}.{name}", tuple(sizes[axis] for axis in axes), above=least.get(name, -math.inf))
             for name, axes in FRAME.items()}  # fmt: skip
    return Frame(Rows(X, domain), target=m, **parts)


def _domains_written(domains: Domains) -> tuple[str, dict[str, Any], Tensors]:
    """The kind of k_P, and what it is made from."""
    if isinstance(domains, Correlation):
        return "correlation", {}, {"lam": domains.lam}
    if isinstance(domains, Embedded):
        samples = domains.base
        about = {"form": domains.form, "sized": domains.size is not None, "attended": domains.attention is not None}
        return "embedded", about, {"base.X": samples.rows.X, "base.domain": samples.rows.domain, "base.weight": samples.weight}
    raise InputError("estimator", expected=f"domain kernels {', '.join(KINDS)}", got=type(domains).__name__, cure="save one of these")


def _correlation(read: Reader, here: str, raw: Tensors, network: Network, shift: Shift) -> Domains:
    if f"{here}.raw.lam" in read.tensors:
        raw["lam"] = read.take(f"{here}.raw.lam", (shift.sources,))
    lam = read.take(f"{here}.lam", (shift.sources,), least=-1.0)
    read.check(bool((lam <= 1).all()), "correlations up to 1", f"{lam.tolist()}")
    return Correlation(lam)


def _embedded(read: Reader, here: str, raw: Tensors, network: Network, shift: Shift) -> Domains:
    d, D = len(shift.names), len(shift.codes)
    X = read.take(f"{here}.base.X", (None, d))
    domain = read.domains(f"{here}.base.domain", len(X), D)
    read.check(len(domain.unique()) == D, "base samples of every domain", f"those of {len(domain.unique())}")
    samples = base(network, Rows(X, domain), raw["relevance"].exp(), read.take(f"{here}.base.weight", (len(X),), above=0.0))
    size = attention = None
    if read.entry("sized", bool):
        raw["size"] = read.take(f"{here}.raw.size", ())
        size = raw["size"].exp()
    if read.entry("attended", bool):
        raw["phi"] = read.take(f"{here}.raw.phi", (None, d))
        r = len(raw["phi"])
        raw |= {"A": read.take(f"{here}.raw.A", (D, r, r)), "v": read.take(f"{here}.raw.v", (D, r))}
        attention = Attention(raw["phi"], raw["A"], raw["v"])
    return Embedded(samples, read.named("form", FORMS), size, attention)


KINDS: dict[str, Callable[[Reader, str, Tensors, Network, Shift], Domains]] = {"correlation": _correlation, "embedded": _embedded}


def _network_written(network: Network) -> dict[str, Any]:
    """The arguments of the network."""
    require(isinstance(network, FullyConnected), "estimator", expected="fully connected networks", got=type(network).__name__,
            cure="save one of these")  # fmt: skip
    return {part.name: plain(part.name, getattr(network, part.name)) for part in fields(FullyConnected)}


def _network_read(read: Reader) -> Network:
    about = read.inside("network")
    return FullyConnected(about.entry("depth", int), about.entry("activation", str), about.number("w_std"), about.number("b_std"),
                          about.entry("parameterization", str), about.entry("width", int))  # fmt: skip


def _process_read(read: Reader, i: int, frames: list[Frame], shift: Shift) -> Learned:
    here, rows, network = f"process.{i}", frames[read.index("frame", len(frames))], _network_read(read)
    shapes = {"relevance": (len(shift.names),), "scale": (), "offset": (), "noise": (len(shift.codes),)}
    raw = {name: read.take(f"{here}.raw.{name}", shape) for name, shape in shapes.items()}
    domains = KINDS[read.named("kind", tuple(KINDS))](read, here, raw, network, shift)
    about = read.inside("scale")
    scale = Scale(about.entry("approximation", str), *(about.entry(name, int) for name in ("features", "rows", "seed")))
    found = learn(rows, network, Family(lambda _: domains), raw, frozen=tuple(raw), scale=scale)
    return replace(found, objective=read.number("objective"), evaluations=read.entry("evaluations", int))


def _model_read(read: Reader, i: int, processes: list[Learned]) -> Candidate:
    name, start = read.entry("name", str), processes[read.index("process", len(processes))]
    if read.config.get("trained") is None:
        return candidate(name, start)
    about, rows, time = read.inside("trained"), start.frame, read.inside("trained").number("time")
    read.check(time >= 0, "a time >= 0", str(time))
    residuals = read.take(f"model.{i}.residuals", (None, rows.y.shape[1]))
    spread = read.take(f"model.{i}.spread", (len(residuals),), above=0.0)
    wanted = (rows.target, len(held(rows.target, start.scale)))  # all, or as many as are held out
    read.check(len(residuals) in wanted, f"a residual of each label in model.{i}", str(len(residuals)))
    if not start.scale.exact(len(rows.y), TRAINED):
        return candidate(name, replace(train(start, time=time), rule=about.entry("rule", str), residuals=residuals, spread=spread))
    root, pair = start.noise.sqrt(), start.kernel.pair(rows.rows)
    K = pair.nngp / torch.outer(root, root)
    K.diagonal().add_(1)
    flow = gradient_flow(eigendecompose(pair.ntk / torch.outer(root, root)), rows.y / root[:, None])
    return candidate(name, Trained(start, flow, K, time, about.entry("rule", str), residuals, spread))
