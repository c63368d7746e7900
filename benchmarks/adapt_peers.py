"""Other ways to carry a regression over to a domain with few labels: scikit-learn, GPyTorch, skada and adapt, all with one interface.

Methods that learn weights or a map of the source from columns alone see the unlabelled rows too; what they then fit is fitted to the
source's rows and the labelled rows of the target domain together. Methods that ask for labels of the target domain get them.

What they fit, where they leave the choice (`adapt_fits`): a Gaussian process (RBF, one length scale, white noise; maximum likelihood),
which gives a standard deviation; where rows have weights its mean, as a kernel ridge with the length scale and noise of that process;
and ridge where a method is made for linear models. adapt needs TensorFlow; its networks are left out. Not here either: methods that
are for classes only, skada's entropic OT (its maps of these tables are not numbers) and its DiscriminatorReweight (which weights the
source by source over target), and TabPFN, whose weights have to be downloaded.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import sklearn
from sklearn.linear_model import Ridge

from benchmarks.adapt_data import Split
from benchmarks.adapt_fits import (
    FITS,
    Prediction,
    Rows,
    Smoother,
    gp_marked,
    gp_pooled,
    gp_target_only,
    hyperparameters,
    marked,
    of_target,
    pooled,
    process,
    rows,
    target_only,
    with_domain,
)


def ard(domain: str, split: Split, seed: int) -> Prediction:
    """GPyTorch: a length scale for each column; coregionalised if told the domain."""
    from benchmarks import adapt_gpytorch

    r = rows(split, "target" if domain == "target only" else "both")
    if domain == "coregionalised":
        return r.back(*adapt_gpytorch.predict(with_domain(r, 1.0), r.y, of_target(r.test, 1.0), domains=2, seed=seed))
    X, y = (r.target, r.y_target) if domain == "target only" else (r.X, r.y)
    return r.back(*adapt_gpytorch.predict(X, y, r.test, domains=1, seed=seed))


def mapped(source: np.ndarray, target: np.ndarray, test: np.ndarray, r: Rows) -> Prediction:
    """The process in the coordinates that a method has found."""
    return r.back(*process(np.concatenate((source, target)), r.y).predict(test, return_std=True))


# skada: positive codes are source domains, negative ones target domains


@contextmanager
def routed() -> Iterator[None]:
    """skada turns scikit-learn's metadata routing on for the whole process as it is imported: here it is put back."""
    before = sklearn.get_config()["enable_metadata_routing"]
    try:
        import skada  # noqa: F401

        with sklearn.config_context(enable_metadata_routing=True):
            yield
    finally:
        sklearn.set_config(enable_metadata_routing=before)


def skada_reweighted(adapter: str, split: Split, seed: int, **options: Any) -> Prediction:
    r = rows(split)
    with routed():
        import skada

        X, domain = np.concatenate((r.X, r.seen)), np.repeat([1, -2], [len(r.X), len(r.seen)])
        y = np.concatenate((r.y, np.full(len(r.seen), np.nan)))
        weight = getattr(skada, adapter)(**options).fit(X, y, sample_domain=domain).compute_weights(X, y, sample_domain=domain)[: len(r.X)]
    return r.back(Smoother().fit(r.X, r.y, sample_weight=weight / weight.mean()).predict(r.test))


def skada_mapped(adapter: str, split: Split, seed: int, **options: Any) -> Prediction:
    r = rows(split)
    with routed():
        import skada

        X, domain = np.concatenate((r.source, r.seen)), np.repeat([1, -2], [len(r.source), len(r.seen)])
        y = np.concatenate((r.y_source, np.full(len(r.seen), np.nan)))
        found = getattr(skada, adapter)(**options)
        Z = found.fit_transform(X, y, sample_domain=domain)
        test = found.transform(r.test, sample_domain=np.full(len(r.test), -2))
    m, n = len(r.source), len(r.target)
    return mapped(Z[:m], Z[m : m + n], test, r)


def skada_joint(split: Split, seed: int) -> Prediction:
    """Joint distribution optimal transport, with at most 20 rounds."""
    r = rows(split)
    base = Smoother(**hyperparameters(r.X, r.y))
    with routed():
        import skada

        domain = np.repeat([1, -2], [len(r.X), len(r.seen)])
        found = skada.JDOTRegressor(base, n_iter_max=20)
        found.fit(np.concatenate((r.X, r.seen)), np.concatenate((r.y, np.zeros(len(r.seen)))), sample_domain=domain)
        return r.back(found.predict(r.test))


# adapt


def adapt_class(kind: str, name: str) -> Any:
    """A class of adapt, which imports TensorFlow."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return getattr(import_module(f"adapt.{kind}_based"), name)


def adapt_reweighted(name: str, split: Split, seed: int, **options: Any) -> Prediction:
    r = rows(split)
    model = adapt_class("instance", name)(Smoother(**hyperparameters(r.X, r.y)), Xt=r.seen, verbose=0, random_state=seed, **options)
    return r.back(model.fit(r.X, r.y).predict(r.test))


def adapt_labelled(name: str, split: Split, seed: int, **options: Any) -> Prediction:
    r = rows(split)
    base = Smoother(**hyperparameters(r.X, r.y))
    model = adapt_class("instance", name)(base, Xt=r.target, yt=r.y_target, verbose=0, random_state=seed, **options)
    return r.back(model.fit(r.source, r.y_source).predict(r.test))


def adapt_mapped(name: str, split: Split, seed: int, **options: Any) -> Prediction:
    r = rows(split)
    model = adapt_class("feature", name)(Ridge(), verbose=0, random_state=seed, **options)
    source = model.fit_transform(r.source, r.seen)
    target, test = (model.transform(part, domain="tgt") for part in (r.target, r.test))
    return mapped(source, target, test, r)


def adapt_features(name: str, fit: Callable[[int], Any], split: Split, seed: int) -> Prediction:
    r = rows(split)
    model = adapt_class("feature", name)(fit(seed), Xt=r.target, yt=r.y_target, verbose=0, random_state=seed)
    return r.back(model.fit(r.source, r.y_source).predict(r.test))


def adapt_interpolated(split: Split, seed: int) -> Prediction:
    r = rows(split)
    model = adapt_class("parameter", "LinInt")(Smoother(), Xt=r.target, yt=r.y_target, verbose=0, random_state=seed)
    return r.back(model.fit(r.source, r.y_source).predict(r.test))


def adapt_regular(name: str, split: Split, seed: int) -> Prediction:
    r = rows(split)
    base = process(r.source, r.y_source) if name == "RegularTransferGP" else Ridge().fit(r.source, r.y_source)
    return r.back(adapt_class("parameter", name)(base, verbose=0, random_state=seed).fit(r.target, r.y_target).predict(r.test))


PLAIN = {name: FITS[name] for name in ("ridge", "boosting")}
PEERS: Mapping[str, Callable[[Split, int], Prediction]] = {
    "GP, target only": gp_target_only,
    "GP, pooled": gp_pooled,
    "GP, domain as a column": gp_marked,
    **{f"gpytorch, {domain}": partial(ard, domain) for domain in ("target only", "pooled", "coregionalised")},
    **{f"{name}, target only": partial(target_only, fit) for name, fit in PLAIN.items()},
    **{f"{name}, pooled": partial(pooled, fit) for name, fit in PLAIN.items()},
    **{f"{name}, domain as a column": partial(marked, fit) for name, fit in PLAIN.items()},
    "skada KMM": partial(skada_reweighted, "KMMReweightAdapter", max_iter=300),
    "skada KLIEP": partial(skada_reweighted, "KLIEPReweightAdapter", gamma=[0.01, 0.1, 1.0]),
    "skada nearest neighbours": partial(skada_reweighted, "NearestNeighborReweightAdapter"),
    "skada Gaussian": partial(skada_reweighted, "GaussianReweightAdapter"),
    "skada MMDTarS": partial(skada_reweighted, "MMDTarSReweightAdapter", gamma=1.0),
    "skada CORAL": partial(skada_mapped, "CORALAdapter"),
    "skada subspace alignment": partial(skada_mapped, "SubspaceAlignmentAdapter"),
    "skada TCA": partial(skada_mapped, "TransferComponentAnalysisAdapter"),
    "skada OT": partial(skada_mapped, "OTMappingAdapter"),
    "skada linear OT": partial(skada_mapped, "LinearOTMappingAdapter", reg=1e-3),
    "skada JDOT": skada_joint,
    "adapt KMM": partial(adapt_reweighted, "KMM"),
    "adapt KLIEP": partial(adapt_reweighted, "KLIEP"),
    "adapt uLSIF": partial(adapt_reweighted, "ULSIF"),
    "adapt RuLSIF": partial(adapt_reweighted, "RULSIF"),
    "adapt IWC": partial(adapt_reweighted, "IWC"),
    "adapt nearest neighbours": partial(adapt_reweighted, "NearestNeighborsWeighting"),
    "adapt balanced weighting": partial(adapt_labelled, "BalancedWeighting"),
    "adapt TrAdaBoostR2": partial(adapt_labelled, "TrAdaBoostR2"),
    "adapt two-stage TrAdaBoostR2": partial(adapt_labelled, "TwoStageTrAdaBoostR2"),
    "adapt CORAL": partial(adapt_mapped, "CORAL"),
    "adapt SA": partial(adapt_mapped, "SA"),
    "adapt TCA": partial(adapt_mapped, "TCA"),
    **{f"adapt FA, {name}": partial(adapt_features, "FA", FITS[name]) for name in ("ridge", "smoother")},
    **{f"adapt PRED, {name}": partial(adapt_features, "PRED", FITS[name]) for name in ("boosting", "smoother")},
    "adapt LinInt": adapt_interpolated,
    "adapt RegularTransferLR": partial(adapt_regular, "RegularTransferLR"),
    "adapt RegularTransferGP": partial(adapt_regular, "RegularTransferGP"),
}


OPTIONAL = ("skada", "adapt", "gpytorch")


def installed(name: str) -> bool:
    """Whether the package of a peer is there."""
    package = name.split()[0].rstrip(",")
    return package not in OPTIONAL or find_spec(package) is not None


def load() -> None:
    """Import what peers need, so that no method's time has it."""
    for name in filter(installed, PEERS):
        if name.startswith("adapt "):
            adapt_class("instance", "KMM")
        elif name.startswith("skada "):
            with routed():
                pass
        elif name.startswith("gpytorch"):
            from benchmarks import adapt_gpytorch  # noqa: F401


def predict(name: str, split: Split, seed: int) -> Prediction:
    """Mean, and the standard deviation where a method gives one, of the test rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of maxima at the edge of their bounds, and of TensorFlow
        return PEERS[name](split, seed)
