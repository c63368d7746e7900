"""Few-label domain adaptation for regression as scikit-learn estimators. This file and `estimators_*.py` alone import scikit-learn.

    TargetOnlyGP             the labelled rows of the target alone
    PooledGP                 all rows, as if of one domain, but for a level of each
    TransferGPRegressor      one correlation for each source, learned (AT-GP: Cao et al., 2010)
    ReweightedGP             all rows; noise of a source row by its importance p_T/p_S
    MeanEmbeddingGP          correlations of fixed mean embeddings
    DINOInitRegressor        learned weights of base samples; the Gaussian process of the network at initialisation
    DINOTrainRegressor       the same network with all layers trained, for a finite time

All are `fit(X, y, sample_domain)` with skada's codes: positive for a source, negative for the target, NaN in y for a target row without
label. Predictions are for the target domain, and the standard deviation is that of a new label, noise included.
"""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from driftway.adapt import dino_init, dino_train
from driftway.adapt.dino_init import Prediction, Settings, base_samples, first_stage, parameters, second_stage
from driftway.adapt.distribution_kernel import FORMS
from driftway.adapt.estimators_base import DomainRegressor
from driftway.adapt.family import constant, embedded
from driftway.adapt.frame import canonical, frame
from driftway.adapt.importance import METHODS
from driftway.adapt.learn import Learned
from driftway.adapt.scale_weights import weights_of_many
from driftway.adapt.shift import Shift
from driftway.checks import choice, count, real, require
from driftway.stopping.stop import ALONE


class TargetOnlyGP(DomainRegressor):
    """A Gaussian process on the labelled rows of the target: what every transfer has to beat."""

    def _learn(self, shift: Shift, settings: Settings) -> Learned:
        alone = shift.alone()
        require(alone.labels > 0, "y", expected="labelled rows of the target", got="none", cure="label some, or fit a PooledGP")
        return first_stage(frame(alone), shift.sources, settings, constant(shift.sources, 0.0))


class PooledGP(DomainRegressor):
    """A Gaussian process on the rows of all domains, as if they were of one, but for a level of its own for each."""

    def _learn(self, shift: Shift, settings: Settings) -> Learned:
        return first_stage(frame(shift), shift.sources, settings, constant(shift.sources, 1.0))


class TransferGPRegressor(DomainRegressor):
    """The adaptive transfer process: a learned correlation with each source (Cao et al., 2010)."""

    def _learn(self, shift: Shift, settings: Settings) -> Learned:
        return first_stage(frame(shift), shift.sources, settings)


class ReweightedGP(DomainRegressor):
    """The pooled process, in which source rows count by their importance p_T(x)/p_S(x): for shifts of the inputs alone.

    Args:
        weights: how importance is estimated: kulsif, kmm or logistic.
        depth: hidden layers of the network whose kernel is used; 0 is a linear model.
        activation: relu, leaky_relu, abs, erf or gelu.
        source_weight: how much the likelihood of the sources counts in learning, from 0 to 1.
        max_iter: quasi-Newton steps.
        random_state: seed of whatever is drawn.
        approximation: exact, inducing, features, or auto: exact up to 5,000 labelled rows, then inducing (scale.py).
        features: that rows far from the target are summarised by.
    """

    def __init__(self, weights="kulsif", depth=2, activation="relu", source_weight=0.3, max_iter=40, random_state=0, approximation="auto",
                 features=1000):  # fmt: skip
        super().__init__(depth, activation, source_weight, max_iter, random_state, approximation, features)
        self.weights = weights

    def _settings(self) -> Settings:
        choice("weights", self.weights, METHODS)
        return super()._settings()

    def _learn(self, shift: Shift, settings: Settings) -> Learned:
        for d in range(shift.sources + 1):
            require(len(shift.rows(d)) >= 2, "X", expected="2 rows or more in every domain, to compare their laws",
                    got=f"one in domain {shift.codes[d]}", cure="give it more, with or without labels, or fit a PooledGP")  # fmt: skip
        scaled, weight = frame(shift).standard(shift.X), shift.weight.clone()
        target, *sources = (rows[canonical(shift.X[rows])] for rows in map(shift.rows, range(shift.sources + 1)))
        for own in sources:
            weight[own] *= weights_of_many(scaled[own], scaled[target], method=self.weights, seed=settings.seed).clamp_min(1e-6)
        return first_stage(frame(replace(shift, weight=weight)), shift.sources, settings, constant(shift.sources, 1.0))


class MeanEmbeddingGP(DomainRegressor):
    """The transfer process whose correlations are those of mean embeddings of the inputs: nothing about them is learned but a size.

    Args:
        form: of k_P: product, cosine, centred or exponential.
        base: base samples of each domain, at most.
        depth: hidden layers of the network whose kernel is used; 0 is a linear model.
        activation: relu, leaky_relu, abs, erf or gelu.
        source_weight: how much the likelihood of the sources counts in learning, from 0 to 1.
        max_iter: quasi-Newton steps.
        random_state: seed of whatever is drawn.
        approximation: exact, inducing, features, or auto: exact up to 5,000 labelled rows, then inducing (scale.py).
        features: that rows far from the target are summarised by.
    """

    def __init__(self, form="cosine", base=100, depth=2, activation="relu", source_weight=0.3, max_iter=40, random_state=0,
                 approximation="auto", features=1000):  # fmt: skip
        super().__init__(depth, activation, source_weight, max_iter, random_state, approximation, features)
        self.form = form
        self.base = base

    def _settings(self) -> Settings:
        choice("form", self.form, FORMS)
        return replace(super()._settings(), base=count("base", self.base))

    def _learn(self, shift: Shift, settings: Settings) -> Learned:
        first = parameters(frame(shift), shift.sources, settings)
        return second_stage(first, embedded(base_samples(shift, first, settings), self.form), settings)


class DINOInitRegressor(MeanEmbeddingGP):
    """DINO-INIT: learned weights of base samples, in the Gaussian process of the network at initialisation (Wu et al., 2022).

    Args:
        form: of k_P: product, cosine, centred or exponential.
        base: base samples of each domain, at most.
        rank: features of a row that its weights are made from.
        pull: standard deviation of the prior of these weights' parameters; 0 leaves them uniform.
        depth: hidden layers of the network whose kernel is used; 0 is a linear model.
        activation: relu, leaky_relu, abs, erf or gelu.
        source_weight: how much the likelihood of the sources counts in learning, from 0 to 1.
        max_iter: quasi-Newton steps.
        random_state: seed of whatever is drawn.
        approximation: exact, inducing, features, or auto: exact up to 5,000 labelled rows, then inducing (scale.py).
        features: that rows far from the target are summarised by.

    Attributes:
        model_: with `model_.kernel.domains.weights`, the weights of base samples.
    """

    def __init__(self, form="cosine", base=100, rank=4, pull=0.1, depth=2, activation="relu", source_weight=0.3, max_iter=40,
                 random_state=0, approximation="auto", features=1000):  # fmt: skip
        super().__init__(form, base, depth, activation, source_weight, max_iter, random_state, approximation, features)
        self.rank = rank
        self.pull = pull

    def _settings(self) -> Settings:
        return replace(super()._settings(), rank=count("rank", self.rank), pull=real("pull", self.pull, least=0))

    def _learn(self, shift: Shift, settings: Settings) -> Learned:
        first = parameters(frame(shift), shift.sources, settings)
        return dino_init.weighted(shift, first, self.form, settings)


class DINOTrainRegressor(DINOInitRegressor):
    """DINO-TRAIN: the network of DINO-INIT with all its layers trained, for a time that a stopping rule chooses (Wu et al., 2022).

    Args:
        form: of k_P: product, cosine or centred.
        base: base samples of each domain, at most.
        rank: features of a row that its weights are made from.
        pull: standard deviation of the prior of these weights' parameters; 0 leaves them uniform.
        rule: rademacher, discrepancy, sure, gcv, marginal_likelihood or cross_validation.
        time: of training, if it is not to be chosen; math.inf trains to the end.
        depth: hidden layers of the network whose kernel is used; 0 is a linear model.
        activation: relu, leaky_relu, abs, erf or gelu.
        source_weight: how much the likelihood of the sources counts in learning, from 0 to 1.
        max_iter: quasi-Newton steps.
        random_state: seed of whatever is drawn.
        approximation: exact, inducing, features, or auto: exact up to 5,000 labelled rows, then inducing (scale.py).
        features: that rows far from the target are summarised by.

    Attributes:
        model_: with `model_.time`, and `model_.start`, the process at initialisation.
    """

    def __init__(self, form="cosine", base=100, rank=4, pull=0.1, rule="cross_validation", time=None, depth=2, activation="relu",
                 source_weight=0.3, max_iter=40, random_state=0, approximation="auto", features=1000):  # fmt: skip
        super().__init__(form, base, rank, pull, depth, activation, source_weight, max_iter, random_state, approximation, features)
        self.rule = rule
        self.time = time

    def _settings(self) -> Settings:
        choice("form", self.form, FORMS[:-1])  # no network has the exponential one
        choice("rule", self.rule, ALONE)
        if self.time is not None and self.time != math.inf:
            real("time", self.time, least=0)
        return super()._settings()

    def _fit(self, shift: Shift) -> Any:
        return dino_train.train(super()._fit(shift), rule=self.rule, time=self.time)

    def _predict(self, rows: Tensor) -> Prediction:
        return dino_train.predict(self.model_, rows)

    def _spread(self, rows: Tensor) -> Tensor:
        return dino_train.covariance(self.model_, rows)

    @property
    def _process(self) -> Learned:
        return self.model_.start
