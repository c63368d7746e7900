"""When to stop fine-tuning, computed from the tangent kernel of the pretrained network; and what merging fine-tuned networks will do."""

from driftway.finetune.flow import Curves, Flow
from driftway.finetune.linearized import Linearized
from driftway.finetune.logistic import LogisticPath, centred_one_hot, logistic_path, working_problem
from driftway.finetune.merging import MergePlan, plan_merge
from driftway.finetune.noise import Noise, fit_noise
from driftway.finetune.schedule import Schedule
from driftway.finetune.stopping import RULES, Stop, stopping_time
from driftway.finetune.taskvector import TaskVector

__all__ = [
    "RULES", "Curves", "Flow", "Linearized", "LogisticPath", "MergePlan", "Noise", "Schedule", "Stop", "TaskVector", "centred_one_hot",
    "fit_noise", "logistic_path", "plan_merge", "stopping_time", "working_problem",
]  # fmt: skip
