"""Kernels: their algebra, networks of infinite width, tangent kernels of any network, and mean embeddings of samples."""

from driftway.kernels.activations import GELU, ABReLU, Activation, Erf
from driftway.kernels.base import Kernel, blocks, operator
from driftway.kernels.convolution import Convolutional
from driftway.kernels.embedding import MeanEmbedding, embed, mmd2, mmd2_from_gram, witness
from driftway.kernels.infinite import FullyConnected
from driftway.kernels.network import Network, Pair
from driftway.kernels.predict import GradientFlow, Posterior, gradient_flow, posterior
from driftway.kernels.simple import Energy, Gaussian, Linear, median_bandwidth
from driftway.kernels.tangent import Projection, TangentFeatures, TangentKernel, tangent_features, tangent_gram
from driftway.kernels.two_sample import MMDTest, mmd_test, mmd_test_from_gram

__all__ = [
    "GELU",
    "ABReLU",
    "Activation",
    "Convolutional",
    "Energy",
    "Erf",
    "FullyConnected",
    "Gaussian",
    "GradientFlow",
    "Kernel",
    "Linear",
    "MMDTest",
    "MeanEmbedding",
    "Network",
    "Pair",
    "Posterior",
    "Projection",
    "TangentFeatures",
    "TangentKernel",
    "blocks",
    "embed",
    "gradient_flow",
    "median_bandwidth",
    "mmd2",
    "mmd2_from_gram",
    "mmd_test",
    "mmd_test_from_gram",
    "operator",
    "posterior",
    "tangent_features",
    "tangent_gram",
    "witness",
]  # fmt: skip
