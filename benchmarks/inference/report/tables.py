"""The tables of what a study measured, as Markdown."""

from typing import Optional

import numpy as np

from benchmarks.inference.report.cells import (
    NONE,
    cell,
    end_of,
    markdown_table,
    per_cent,
    rate_name,
)
from benchmarks.inference.report.estimates import Estimate, mean_of
from benchmarks.inference.report.expert_load import expert_load
from benchmarks.inference.report.gaps import (
    Gap,
    find_gaps,
    skipped_variants,
    throughput_name,
)
from benchmarks.inference.report.maximum import (
    PLATEAU,
    UNBOUNDED,
    Maximum,
    common_kind,
    find_maxima,
    highest_seen,
    maximum_runs,
    too_short,
)
from benchmarks.inference.report.paper import paper_model, paper_size
from benchmarks.inference.report.percentiles import (
    PERCENTILES,
    TIMES,
    percentiles,
)
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.speculation import find_speculation
from benchmarks.inference.report.summary import Summary

__all__ = [
    'experts_table',
    'maximum_table',
    'percentile_table',
    'rate_table',
    'speculation_table',
    'variant_table',
]


def maximum_table(summary: Summary, size: str) -> str:
    """Maximum throughput and its drops, the paper's beside them."""
    maxima, paper = find_maxima(summary, size), paper_size(size)
    head = [
        'model',
        'runs',
        'maximum (tokens/s)',
        'drop against dense',
        'measured at',
        'by the other measure (tokens/s)',
    ]
    if summary.devices_differ:
        head.insert(1, 'devices')
    if paper:
        head += [f'paper {paper.name} (tokens/s)', "paper's drop"]
    rows = []
    for arm in summary.arms(size):
        row = _maximum_cells(maxima[arm]) if arm in maxima else \
            _no_maximum_cells(summary, size, arm)
        if summary.devices_differ:
            row.insert(0, str(summary.devices(size, arm)))
        if paper:
            row += _paper_cells(size, arm)
        rows.append([summary.name(size, arm), *row])
    return markdown_table(head, rows)


def _maximum_cells(found: Maximum) -> list[str]:
    return [
        str(found.throughput.n_runs),
        cell(found.throughput, ',.0f'),
        cell(found.drop, '.1%'),
        found.kind,
        cell(found.beside, ',.0f'),
    ]


def _no_maximum_cells(summary: Summary, size: str, arm: Arm) -> list[str]:
    """Of what lacks the measure that others are compared by."""
    seen = highest_seen(summary, size, arm)
    least = NONE if seen is None else f'at least {seen:,.0f}'
    if common_kind(summary, size, summary.arms(size)) == UNBOUNDED:
        why, other = f'not at the {UNBOUNDED}', PLATEAU
    else:
        is_saturated = bool(too_short(summary, size, arm))
        why = 'too few requests' if is_saturated else 'never saturated'
        other = UNBOUNDED
    beside = mean_of(list(maximum_runs(summary, size, arm, other).values()))
    return [NONE, least, NONE, why, cell(beside, ',.0f')]


def _paper_cells(size: str, arm: Arm) -> list[str]:
    model = paper_model(size, arm)
    if model is None:
        return [NONE, NONE]
    drop = NONE if model.drop is None else per_cent(model.drop)
    return [f'{model.throughput:,.0f}', drop]


def rate_table(summary: Summary, size: str) -> str:
    """All that was measured, rate by rate, variants too."""
    head = [
        'model',
        'offered (requests/s)',
        'runs',
        'achieved (requests/s)',
        'throughput (tokens/s)',
        'over the whole run (tokens/s)',
        'mean latency (s)',
        'saturated',
    ]
    rows = [
        _rate_row(summary, size, arm, rate)
        for arm in (*summary.arms(size), *summary.variants(size))
        for rate in (*summary.rates(size, arm), None)
        if summary.runs(size, arm, rate)
    ]
    return markdown_table(head, rows)


def _rate_row(
    summary: Summary,
    size: str,
    arm: Arm,
    rate: Optional[float],
) -> list[str]:
    place = size, arm, rate
    runs = summary.runs(*place)
    n_saturated = sum(
        point.measured.saturated for point in runs.values() if point.measured
    )
    is_saturated = rate is None or n_saturated > 0
    return [
        summary.name(size, arm),
        rate_name(rate),
        str(len(runs)),
        cell(summary.mean(*place, lambda m: m.achieved), '.3f'),
        cell(summary.mean(*place, lambda m: m.throughput), ',.1f'),
        cell(summary.mean(*place, lambda m: m.whole_run), ',.1f'),
        # Of a queue that grows, it says for how long it grew.
        NONE if is_saturated else
        cell(summary.mean(*place, lambda m: m.latency), '.3f'),
        'by design' if rate is None else
        f'{n_saturated} of {len(runs)}' if n_saturated else 'no',
    ]


def percentile_table(summary: Summary, size: str) -> str:
    """Of what requests take at the highest rate shared; may be empty."""
    arms = summary.arms(size)
    rates = summary.keeping_up(size, arms)
    if not rates:
        return ''
    head = ['model', 'seconds', 'mean', *(f'p{p}' for p in PERCENTILES)]
    rows = [[
        summary.name(size, arm),
        name,
        *(
            cell(value, '.3f')
            for value in percentiles(summary, size, arm, rates[-1], name)
        ),
    ]
            for name in TIMES
            for arm in arms]
    return markdown_table(head, rows, n_left=2)


def experts_table(summary: Summary, size: str) -> str:
    """The busiest expert's share; empty where no load was recorded."""
    rows = []
    for arm in (*summary.mixtures(size), *summary.variants(size)):
        load = expert_load(summary, size, arm)
        if load is not None:
            busiest = load.max(axis=1) / arm.experts
            rows.append([
                summary.name(size, arm),
                per_cent(1 / arm.experts, 1),
                per_cent(float(np.mean(busiest)), 1),
                f'{per_cent(float(busiest.max()), 1)} in layer '
                f'{int(busiest.argmax())}',
                f'{load.max():.2f}',
            ])
    head = [
        'model',
        'even share',
        "busiest expert's share (mean over layers)",
        'most of any layer',
        'times an even share',
    ]
    return markdown_table(head, rows) if rows else ''


def speculation_table(summary: Summary, size: str) -> str:
    """What drafts bring at each rate; empty where nothing drafts."""
    rows = [[
        summary.name(size, found.arm),
        rate_name(found.rate),
        cell(found.acceptance, '.1%'),
        cell(found.speed_up, '.2f'),
        'throughput' if found.is_saturated else 'latency',
    ] for found in find_speculation(summary, size)]
    head = [
        'model',
        'offered (requests/s)',
        'accepted draft tokens',
        'speed-up',
        'of',
    ]
    return markdown_table(head, rows) if rows else ''


def variant_table(summary: Summary) -> str:
    """How much of the gap to dense each variant closes, and what was skipped.

    Returns:
        Empty where there is neither.
    """
    gaps = [gap for size in summary.sizes for gap in find_gaps(summary, size)]
    rows = [_gap_row(summary, gap) for gap in gaps]
    for (size, variant, reason), arms in skipped_variants(summary).items():
        names = ', '.join(summary.name(size, arm.base) for arm in arms)
        why = f'skipped: {end_of(reason)}'
        rows.append([size, variant, names, *[NONE] * 4, why])
    head = [
        'size',
        'variant',
        'model',
        'devices',
        'gap closed in latency, at a low rate',
        f'gap closed in {throughput_name(gaps)}, at saturation',
        'drop against dense with the same variant',
        'why not',
    ]
    return markdown_table(head, rows, n_left=3) if rows else ''


def _gap_row(summary: Summary, gap: Gap) -> list[str]:
    latency = cell(gap.latency, '.0%')
    return [
        gap.size,
        gap.variant,
        summary.name(gap.size, gap.arm.base),
        f'{gap.devices}, base {gap.base_devices}'
        if gap.is_per_device else str(gap.devices),
        NONE if gap.latency is None else f'{latency} at {gap.rate:g}/s',
        _throughput_cell(gap.throughput, gap.kind),
        cell(gap.drop, '.1%'),
        'no base' if gap.base is None else '',
    ]


def _throughput_cell(closed: Optional[Estimate], kind: Optional[str]) -> str:
    text = cell(closed, '.0%')
    return f'{text}, {UNBOUNDED}' if closed and kind == UNBOUNDED else text
