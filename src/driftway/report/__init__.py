"""What a run achieved: numbers on held-out rows, figures, and one HTML page that holds them all."""

from driftway.report.evaluate import Evaluation, Quality, evaluate, held_rows
from driftway.report.page import write_report
from driftway.report.plots import (
    draw_certificate,
    draw_landscape,
    draw_neighbours,
    draw_quality,
    draw_samples,
    draw_trajectories,
)
from driftway.report.stopping import Training, write_stopping_report
from driftway.report.study import Study, load_study, save_study

__all__ = [
    "Evaluation",
    "Quality",
    "Study",
    "Training",
    "draw_certificate",
    "draw_landscape",
    "draw_neighbours",
    "draw_quality",
    "draw_samples",
    "draw_trajectories",
    "evaluate",
    "held_rows",
    "load_study",
    "save_study",
    "write_report",
    "write_stopping_report",
]
