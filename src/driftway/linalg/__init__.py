"""Symmetric operators, linear systems, spectra, and the law that a spectrum decays by."""

from driftway.linalg.decay import Decay, Law, fit_decay
from driftway.linalg.operator import SymmetricOperator, dense_operator, gram_operator
from driftway.linalg.solve import Factor, Solution, cholesky, conjugate_gradient, low_rank_preconditioner, pivoted_cholesky
from driftway.linalg.spectrum import Spectrum, eigendecompose, lanczos

__all__ = [
    "Decay",
    "Factor",
    "Law",
    "Solution",
    "Spectrum",
    "SymmetricOperator",
    "cholesky",
    "conjugate_gradient",
    "dense_operator",
    "eigendecompose",
    "fit_decay",
    "gram_operator",
    "lanczos",
    "low_rank_preconditioner",
    "pivoted_cholesky",
]
