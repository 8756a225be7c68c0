"""The figures of the report."""

from typing import Iterator, Mapping, Sequence

from benchmarks.inference.report.figures.experts import draw_experts
from benchmarks.inference.report.figures.look import Drawing, Look, render
from benchmarks.inference.report.figures.percentiles import draw_percentiles
from benchmarks.inference.report.figures.quality import draw_quality
from benchmarks.inference.report.figures.rates import draw_latency, draw_rates
from benchmarks.inference.report.figures.speculation import draw_speculation
from benchmarks.inference.report.figures.throughput import draw_throughput
from benchmarks.inference.report.figures.variants import draw_variants
from benchmarks.inference.report.quality import Quality
from benchmarks.inference.report.summary import Summary

__all__ = ['Drawing', 'draw_figures', 'render']

_OF_SIZE = (
    draw_latency,
    draw_rates,
    draw_percentiles,
    draw_experts,
    draw_speculation,
    draw_variants,
)


def draw_figures(
    summary: Summary,
    quality: Mapping[str, Sequence[Quality]],
) -> Iterator[Drawing]:
    """Draws all that there are results for, size by size.

    Args:
        summary: Of speed.
        quality: Size -> of each server that was asked.
    """
    look = Look(summary)
    drawings = [
        *(draw_quality(look, size, found) for size, found in quality.items()),
        draw_throughput(look),
        *(draw(look, size) for size in summary.sizes for draw in _OF_SIZE),
    ]
    yield from (drawing for drawing in drawings if drawing)
