"""Kernels: their algebra, and mean embeddings of samples."""

from driftway.kernels.base import Kernel, blocks, operator
from driftway.kernels.embedding import MeanEmbedding, embed, mmd2, mmd2_from_gram, witness
from driftway.kernels.simple import Energy, Gaussian, Linear, median_bandwidth
from driftway.kernels.two_sample import MMDTest, mmd_test, mmd_test_from_gram

__all__ = [
    "Energy",
    "Gaussian",
    "Kernel",
    "Linear",
    "MMDTest",
    "MeanEmbedding",
    "blocks",
    "embed",
    "median_bandwidth",
    "mmd2",
    "mmd2_from_gram",
    "mmd_test",
    "mmd_test_from_gram",
    "operator",
    "witness",
]
