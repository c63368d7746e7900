"""When to stop training: the path of a linearised network in the eigenbasis of its kernel, and the rules that choose a time on it."""

from driftway.stopping.crossfit import Validation, cross_validate
from driftway.stopping.flow import Curves, Flow
from driftway.stopping.logistic import LogisticPath, centred_one_hot, logistic_path, working_problem
from driftway.stopping.noise import Noise, fit_noise
from driftway.stopping.schedule import Schedule
from driftway.stopping.stop import RULES, Stop, stopping_time

__all__ = [
    "RULES", "Curves", "Flow", "LogisticPath", "Noise", "Schedule", "Stop", "Validation", "centred_one_hot", "cross_validate",
    "fit_noise", "logistic_path", "stopping_time", "working_problem",
]  # fmt: skip
