"""Tables of arms against continued pretraining, as Markdown."""

from typing import Optional

from foundry_upcycle.study.config import ModelGrid, number_text
from foundry_upcycle.study.grid import Place
from foundry_upcycle.study.report.break_even import (
    BreakEven,
    Lead,
    find_break_even,
)
from foundry_upcycle.study.report.cells import (
    NONE,
    budget_title,
    markdown_table,
    mean_cell,
)
from foundry_upcycle.study.report.metrics import Mean, Metric
from foundry_upcycle.study.report.summary import Summary

__all__ = ['break_even_table', 'difference_table']

_NOISE = {
    None: 'no interval',
    True: 'told apart',
    False: 'within the noise',
}


def difference_table(summary: Summary, model: ModelGrid) -> str:
    """Every point against the reference's at the same FLOPs; may be empty."""
    rows = [
        [
            duration,
            arm,
            number_text(point.budget),
            *(
                _difference(metric, summary.difference(metric, point))
                for metric in summary.metrics
            ),
        ]
        for duration in model.durations
        for arm in summary.compared(model)
        for point in summary.points(model, duration, arm)
        if any(summary.difference(metric, point) for metric in summary.metrics)
    ]
    titles = [metric.title for metric in summary.metrics]
    head = ['duration', 'arm', budget_title(model), *titles]
    return markdown_table(head, rows, n_left=2) if rows else ''


def _difference(metric: Metric, mean: Optional[Mean]) -> str:
    text = mean_cell(mean, '+.4f')
    has_verdict = mean is not None and mean.interval is not None
    return f'{text} {mean.verdict(metric)}' if mean and has_verdict else text


def break_even_table(summary: Summary, model: ModelGrid) -> str:
    """From which FLOPs on arms are ahead of the reference; may be empty."""
    reference = summary.reference(model)
    rows = []
    for duration in model.durations:
        for metric in summary.metrics:
            for arm in summary.compared(model):
                found = find_break_even(
                    _leads(summary, model, duration, metric, arm)
                )
                if found:
                    place = Place(model.name, duration)
                    cells = _cells(summary, model, place, found)
                    rows.append([duration, metric.title, arm, *cells])
    head = [
        'duration',
        'measure',
        'arm',
        f'ahead of {reference}',
        'FLOPs',
        f'tokens of {reference}',
        'differences there',
    ]
    return markdown_table(head, rows, n_left=4) if rows else ''


def _leads(
    summary: Summary,
    model: ModelGrid,
    duration: str,
    metric: Metric,
    arm: str,
) -> list[Lead]:
    sign = 1 if metric.higher_is_better else -1
    leads = []
    for point in summary.points(model, duration, arm):
        mean = summary.difference(metric, point)
        if mean is not None:
            told_apart = None if mean.interval is None else (
                mean.verdict(metric) != 'not told apart'
            )
            leads.append(Lead(point.budget, sign * mean.value, told_apart))
    return leads


def _cells(
    summary: Summary,
    model: ModelGrid,
    start: Place,
    found: BreakEven,
) -> tuple[str, str, str, str]:
    """Whether it is ahead, FLOPs, tokens of the reference, and noise."""
    noise = _NOISE[found.told_apart]
    if found.kind == 'always':
        text = f'at every point (from {model.budget_text(found.budget)})'
        return text, NONE, NONE, noise
    if found.kind == 'never':
        text = 'not within the budget'
        if found.earlier:
            earlier = ', '.join(map(model.budget_text, found.earlier))
            text = f'{text} (only at {earlier})'
        return text, NONE, NONE, noise
    flops = model.budget_flops(found.budget, summary.run(start).flops)
    reference = summary.any_run(model, str(summary.reference(model)))
    tokens = flops / reference.flops * reference.tokens
    text = f"from {model.budget_text(found.budget, '.3g')}"
    return text, f'{flops:.3e}', f'{tokens:.3e}', noise
