"""The figures of a study's report."""

from typing import Iterator, Optional

from foundry_upcycle.study.report.figures.cost import draw_cost
from foundry_upcycle.study.report.figures.curves import draw_curves
from foundry_upcycle.study.report.figures.experts import draw_expert_loads
from foundry_upcycle.study.report.figures.look import Drawing, Look, Scene
from foundry_upcycle.study.report.figures.quality import (
    draw_gains,
    draw_quality,
)
from foundry_upcycle.study.report.serving import Serving
from foundry_upcycle.study.report.summary import Summary

__all__ = ['Drawing', 'draw_figures']


def draw_figures(
    summary: Summary,
    serving: Optional[Serving] = None,
) -> Iterator[Drawing]:
    """Draws all that there are results for, model by model.

    Args:
        summary: What was measured.
        serving: What serving costs, if that was measured.

    Raises:
        ConfigError: The paper has no such model as the study says.
    """
    look = Look.of(summary)
    for model in summary.models:
        scene = Scene(summary, look, model)
        drawings = [
            draw_gains(scene),
            draw_quality(scene),
            draw_curves(scene),
            *draw_expert_loads(scene),
            draw_cost(scene, serving) if serving else None,
        ]
        yield from (drawing for drawing in drawings if drawing)
