"""A folder gives back the estimator that was saved, up to rounding, and is refused when it was changed."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import Ridge

from driftway import store
from driftway.adapt import (
    AutoTransferRegressor,
    DINOInitRegressor,
    DINOTrainRegressor,
    MeanEmbeddingGP,
    PooledGP,
    TransferGPRegressor,
)
from driftway.adapt.explain import explain
from driftway.adapt.folder import CLASSES, load, save
from driftway.adapt.stacking import candidate
from driftway.checks import InputError
from driftway.kernels import Erf
from tests.adapt.fitted import CLASSES as ALL
from tests.adapt.fitted import fit, fitted, frames, many, shift

NEW = np.random.default_rng(5).normal(size=(7, 3))


def same(first, second, X=NEW):
    for a, b in zip(first.predict(X, return_std=True), second.predict(X, return_std=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    one, two = (estimator.predict(X, return_cov=True)[1] for estimator in (first, second))
    np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)


def test_every_class_can_be_saved():
    assert set(CLASSES.values()) == set(ALL)


@pytest.mark.parametrize("made", CLASSES.values(), ids=CLASSES)
def test_what_is_saved_comes_back(tmp_path, made):
    first = fitted(made, sources=2, outputs=2)
    save(first, tmp_path / "new" / "model")
    second = load(tmp_path / "new" / "model")
    same(first, second)
    assert sorted(file.name for file in (tmp_path / "new" / "model").iterdir()) == [store.CONFIG, store.TENSORS]
    assert type(second) is made
    assert second.get_params() == first.get_params()
    assert (second.n_iter_, second.n_features_in_) == (first.n_iter_, first.n_features_in_)
    for name in ("correlation_", "output_covariance_", "noise_std_"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name), rtol=1e-10)
    if made is AutoTransferRegressor:
        assert second.decision_.sentence == first.decision_.sentence
        torch.testing.assert_close(second.weights_, first.weights_)
    save(second, tmp_path / "again")
    same(first, load(tmp_path / "again"))
    assert clone(second).get_params() == first.get_params()


def test_an_explanation_is_that_of_before(tmp_path):
    first = fitted(AutoTransferRegressor, sources=2, outputs=2)
    save(first, tmp_path)
    before, after = (explain(estimator, permutations=19) for estimator in (first, load(tmp_path)))
    for name in ("method", "outputs", "described", "relevance", "remarks"):
        assert getattr(before, name) == getattr(after, name)
    assert [own.index for own in before.top] == [own.index for own in after.top]
    assert [own.nngp.p_value for own in before.domains[1:]] == [own.nngp.p_value for own in after.domains[1:]]
    torch.testing.assert_close(before.foreseen.std, after.foreseen.std)
    torch.testing.assert_close(before.influence, after.influence)


@pytest.mark.parametrize(("made", "parameters"), [
    (DINOTrainRegressor, {"time": math.inf, "form": "centred"}), (DINOInitRegressor, {"form": "exponential", "pull": 0}),
    (MeanEmbeddingGP, {"form": "product", "base": 5}), (PooledGP, {"activation": "erf", "depth": np.int64(1)}),
    (AutoTransferRegressor, {"candidates": ["target", "transfer"], "combine": "best", "trained": False}),
])  # fmt: skip
def test_parameters_come_back(tmp_path, made, parameters):
    first = fit(made, *shift(), **parameters)
    save(first, tmp_path)
    second = load(tmp_path)
    same(first, second)
    for name, value in parameters.items():
        assert getattr(second, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("outputs", [1, 2])
def test_names_come_back(tmp_path, outputs):
    X, y, codes = frames(*shift(outputs=outputs))
    first = fit(PooledGP, X, y, codes)
    save(first, tmp_path)
    second, new = load(tmp_path), X.iloc[:4] + 0.1
    assert second.feature_names_in_.tolist() == ["size", "age", "luck"]
    assert second.shift_.names == ("size", "age", "luck")
    one, two = first.predict(new), second.predict(new)
    assert type(one) is type(two) is (pd.Series if outputs == 1 else pd.DataFrame)
    assert one.index.equals(two.index)
    assert one.to_frame().columns.equals(two.to_frame().columns) if outputs == 1 else one.columns.equals(two.columns)
    same(first, second, new)


@pytest.mark.parametrize("sizes", [{"labels": 0}, {"sources": 0}, {"labels": 1}], ids=str)
def test_small_shifts_come_back(tmp_path, sizes):
    first = fit(AutoTransferRegressor, *shift(**sizes))
    save(first, tmp_path)
    same(first, load(tmp_path))


@pytest.mark.parametrize("made", [PooledGP, DINOTrainRegressor])
@pytest.mark.parametrize("approximation", ["inducing", "features"])
def test_many_rows_come_back(tmp_path, made, approximation):
    first = many(made, approximation)
    save(first, tmp_path)
    second = load(tmp_path)
    same(first, second)
    assert candidate("", second.model_).process.scale == candidate("", first.model_).process.scale
    torch.testing.assert_close(candidate("", second.model_).residuals, candidate("", first.model_).residuals)


def test_weights_come_back(tmp_path):
    X, y, codes = shift()
    first = fit(TransferGPRegressor, X, y, codes, np.linspace(0, 2, len(y)))
    save(first, tmp_path)
    second = load(tmp_path)
    same(first, second)
    assert second.shift_.weight.tolist() == first.shift_.weight.tolist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save(fitted(DINOTrainRegressor, sources=2, outputs=2), folder)
    return store.read_folder("folder", folder)


def changed(whole, tmp_path, change):
    config, tensors = json.loads(json.dumps(whole[0])), dict(whole[1])
    change(config, tensors)
    store.write_folder(tmp_path, tensors, {name: value for name, value in config.items() if name != "version"})
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(*path, value):
    """A change of one entry of the configuration."""
    def change(config, tensors):
        for name in path[:-1]:
            config = config[name]
        config[path[-1]] = value
    return change  # fmt: skip


def tensor(name, make):
    return lambda config, tensors: tensors.update({name: make(tensors[name])})


CHANGES = {
    "class": (put("class", value="Ridge"), "'class' as one of TargetOnlyGP"),
    "class of another kind": (put("class", value=["TargetOnlyGP"]), "'class' as one of"),
    "class that does not fit": (put("class", value="PooledGP"), "parameters activation"),
    "format": (put("format", value=99), "format 1"),
    "parameter": (put("parameters", "os", value="rm"), "parameters activation"),
    "parameter's kind": (put("parameters", "depth", value=[2]), "a parameter depth like 2"),
    "parameter's value": (put("parameters", "form", value="round"), "form: expected one of"),
    "kernel": (put("processes", 0, "kind", value="eval"), "'kind' as one of correlation, embedded"),
    "form": (put("processes", 0, "form", value="round"), "'form' as one of"),
    "frame": (put("processes", 0, "frame", value=7), "'frame' from 0 to 0"),
    "truth for a number": (put("processes", 0, "frame", value=False), "'frame' as int"),
    "network": (put("processes", 0, "network", "activation", value="exec"), "activation: expected"),
    "width": (put("processes", 0, "network", "w_std", value="wide"), "'w_std' as a number"),
    "approximation": (put("processes", 0, "scale", "approximation", value="magic"), "approximation: expected one of"),
    "no processes": (put("processes", value=[]), "'process'"),
    "no models": (put("models", value=[]), "one model"),
    "model": (put("models", 0, value="x"), "models[0] as a table"),
    "untrained": (put("models", 0, "trained", value=None), "the model of its class"),
    "time": (put("models", 0, "trained", "time", value=-1.0), "a time >= 0"),
    "codes": (put("shift", "codes", value=[1, 2, 3]), "codes of a target"),
    "names": (put("shift", "names", value=["a", "b"]), "shift.X as (any, 2)"),
    "outputs": (put("outputs", value=["a"]), "names of the outputs"),
    "lacks": (lambda config, tensors: tensors.pop("frame.0.y"), "a tensor frame.0.y"),
    "too much": (lambda config, tensors: tensors.update(more=torch.zeros(1)), "no further tensors"),
    "shape": (tensor("process.0.raw.noise", lambda x: x[:-1]), "process.0.raw.noise as (3)"),
    "axes": (tensor("process.0.raw.scale", lambda x: x[None]), "process.0.raw.scale as ()"),
    "dtype": (tensor("shift.X", lambda x: x.float()), "shift.X as (any, 3) of torch.float64"),
    "NaN": (tensor("frame.0.X", lambda x: x * math.nan), "finite numbers in frame.0.X"),
    "infinite label": (tensor("shift.y", lambda x: x / 0), "finite numbers in shift.y"),
    "half a label": (tensor("shift.y", lambda x: x.index_fill(1, torch.tensor([0]), math.nan)), "a label in every source row"),
    "domain": (tensor("shift.domain", lambda x: x + 1), "domains from 0 to 2"),
    "order": (tensor("frame.0.domain", lambda x: x.flip(0)), "rows of the target last"),
    "negative weight": (tensor("shift.weight", lambda x: -x), "numbers >= 0 in shift.weight"),
    "no scale": (tensor("frame.0.y_scale", lambda x: 0 * x), "numbers > 0 in frame.0.y_scale"),
    "base": (tensor("process.0.base.domain", lambda x: 0 * x), "base samples of every domain"),
    "spread": (tensor("model.0.spread", lambda x: -x), "numbers > 0 in model.0.spread"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_folder_is_refused_by_name(tmp_path, whole, kind):
    change, words = CHANGES[kind]
    assert words in changed(whole, tmp_path, change)


def test_what_cannot_be_saved_is_refused(tmp_path):
    for other in (PooledGP(), Ridge().fit(NEW, NEW[:, 0])):
        with pytest.raises(InputError, match="estimator: expected a fitted one of"):
            save(other, tmp_path / "none")
    with pytest.raises(InputError, match="activation: expected text, a number"):
        save(fit(PooledGP, *shift(), activation=Erf()), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="folder: expected a model folder"):
        load(tmp_path / "none")
