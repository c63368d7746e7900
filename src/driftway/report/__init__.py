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

__all__ = [
    "Evaluation",
    "Quality",
    "draw_certificate",
    "draw_landscape",
    "draw_neighbours",
    "draw_quality",
    "draw_samples",
    "draw_trajectories",
    "evaluate",
    "held_rows",
    "write_report",
]
