"""Few-label domain adaptation for regression: distribution-informed networks, and the honest family around them."""

from driftway.adapt.descent import step_size, train
from driftway.adapt.distribution_kernel import Base, Correlation, DistributionKernel, Embedded, Rows
from driftway.adapt.estimators import (
    DINOInitRegressor,
    DINOTrainRegressor,
    MeanEmbeddingGP,
    PooledGP,
    ReweightedGP,
    TargetOnlyGP,
    TransferGPRegressor,
)
from driftway.adapt.estimators_auto import AutoTransferRegressor, Decision
from driftway.adapt.estimators_scoring import CircularScorer, DEVScorer, ImportanceWeightedScorer
from driftway.adapt.explain import Explanation, explain
from driftway.adapt.folder import load, save
from driftway.adapt.importance import effective_sample_size, importance_weights
from driftway.adapt.network import DistributionNetwork
from driftway.adapt.shift import Shift
from driftway.adapt.validate import Risk, circular_validation, deep_embedded_validation, importance_weighted_cv
from driftway.adapt.weights import AttentionWeights

__all__ = [
    "AttentionWeights",
    "AutoTransferRegressor",
    "Base",
    "CircularScorer",
    "Correlation",
    "DEVScorer",
    "DINOInitRegressor",
    "DINOTrainRegressor",
    "Decision",
    "DistributionKernel",
    "DistributionNetwork",
    "Embedded",
    "Explanation",
    "ImportanceWeightedScorer",
    "MeanEmbeddingGP",
    "PooledGP",
    "ReweightedGP",
    "Risk",
    "Rows",
    "Shift",
    "TargetOnlyGP",
    "TransferGPRegressor",
    "circular_validation",
    "deep_embedded_validation",
    "effective_sample_size",
    "explain",
    "importance_weighted_cv",
    "importance_weights",
    "load",
    "save",
    "step_size",
    "train",
]
