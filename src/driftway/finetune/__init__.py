"""When to stop fine-tuning, computed from the tangent kernel of the pretrained network; and what merging fine-tuned networks will do."""

from driftway.finetune.linearized import Linearized
from driftway.finetune.merging import MergePlan, plan_merge
from driftway.finetune.taskvector import TaskVector
from driftway.stopping import (
    RULES,
    Curves,
    Flow,
    LogisticPath,
    Noise,
    Schedule,
    Stop,
    centred_one_hot,
    fit_noise,
    logistic_path,
    stopping_time,
    working_problem,
)

__all__ = [
    "RULES", "Curves", "Flow", "Linearized", "LogisticPath", "MergePlan", "Noise", "Schedule", "Stop", "TaskVector", "centred_one_hot",
    "fit_noise", "logistic_path", "plan_merge", "stopping_time", "working_problem",
]  # fmt: skip
