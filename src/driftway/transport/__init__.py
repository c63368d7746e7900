"""Value-driven transport: move samples from one law to another by descending learned value functions.

Source: P. Moreno-Muñoz, A. Müller, G. Neu, Generative Modeling by Value-Driven Transport (2026), arXiv 2605.22507.
"""

from driftway.transport.checkpoint import held_labels, held_rows
from driftway.transport.condition import Conditions
from driftway.transport.dual import Certificate
from driftway.transport.fit import Interrupted, Step, fit, iterate
from driftway.transport.fit_table import fit_table
from driftway.transport.guidance import Guidance, Moment
from driftway.transport.image import ImageValue
from driftway.transport.inner import VectorValue
from driftway.transport.labelled import LabelledMixture
from driftway.transport.learner import Settings
from driftway.transport.measure import Semidiscrete
from driftway.transport.metrics import (
    KernelDistance,
    Path,
    exact_coupling,
    kernel_distance,
    normalised_path_energy,
    path_energy,
    straightness,
    w2,
)
from driftway.transport.mixture import MixtureValue
from driftway.transport.model import TransportModel, certificate
from driftway.transport.policy import explicit, proximal
from driftway.transport.problem import Problem
from driftway.transport.program import solve_assignment_program, solve_program
from driftway.transport.residual import ResidualValue
from driftway.transport.schrodinger import BridgeChecks, check_bridge, marginal
from driftway.transport.semidiscrete import solve_semidiscrete
from driftway.transport.stream import split_rows
from driftway.transport.table import TableValue
from driftway.transport.tangent import TangentDiagnosis, diagnose
from driftway.transport.value import NetworkValue, Value

__all__ = [
    "BridgeChecks", "Certificate", "Conditions", "Guidance", "ImageValue", "Interrupted", "KernelDistance", "LabelledMixture",
    "MixtureValue", "Moment", "NetworkValue", "Path", "Problem", "ResidualValue", "Semidiscrete", "Settings", "Step", "TableValue",
    "TangentDiagnosis", "TransportModel", "Value", "VectorValue",
    "certificate", "check_bridge", "diagnose", "exact_coupling", "explicit", "fit", "fit_table", "held_labels", "held_rows", "iterate",
    "kernel_distance", "marginal", "normalised_path_energy", "path_energy", "proximal", "solve_assignment_program", "solve_program",
    "solve_semidiscrete", "split_rows", "straightness", "w2",
]  # fmt: skip
