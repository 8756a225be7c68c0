"""The tables of quality and cost, as Markdown."""

from typing import Optional, Sequence

from benchmarks.inference.report.answers import NotAsked
from benchmarks.inference.report.cells import NONE, cell, end_of, markdown_table
from benchmarks.inference.report.markdown import plain
from benchmarks.inference.report.quality import (
    Quality,
    front_of_latency,
    front_of_throughput,
)
from benchmarks.inference.report.summary import Summary

__all__ = ['cost_table', 'not_asked', 'quality_table', 'tasks_table']

_MIB = 2**20


def quality_table(
    summary: Summary,
    size: str,
    found: Sequence[Quality],
) -> str:
    """What answers are worth, beside those of the reference."""
    head = [
        'model',
        'loss (nats/token)',
        'bits/byte',
        "less the reference's",
        'share of the gain',
        'same likeliest token',
        'greedy tokens until one differs',
        'answers wholly the same',
    ]
    rows = [[
        summary.name(size, q.arm),
        cell(q.nll, '.4f'),
        cell(q.bits_per_byte, '.4f'),
        cell(q.behind, '+.4f'),
        cell(q.gain, '.0%'),
        cell(q.alike, '.1%'),
        cell(q.until, '.1%'),
        cell(q.whole, '.1%'),
    ] for q in found]
    return markdown_table(head, rows)


def cost_table(summary: Summary, size: str, found: Sequence[Quality]) -> str:
    """What each costs beside its loss, and whether another is better in both."""
    of_throughput = front_of_throughput(found)
    of_latency = front_of_latency(found)
    rates = {q.rate for q in found if q.rate is not None}
    at = f' at {rates.pop():g}/s' if rates else ''
    head = [
        'model',
        'loss (nats/token)',
        'maximum throughput (tokens/s)',
        f'mean latency{at} (s)',
        'weights (MiB)',
        'on the front of',
    ]
    rows = [[
        summary.name(size, q.arm),
        cell(q.nll, '.4f'),
        cell(q.throughput, ',.0f'),
        cell(q.latency, '.3f'),
        megabytes(q.weight_bytes),
        ', '.join(
            name for name, is_on in (
                ('throughput', of_throughput[index]),
                ('latency', of_latency[index]),
            ) if is_on
        ) or NONE,
    ] for index, q in enumerate(found)]
    return markdown_table(head, rows)


def megabytes(n_bytes: Optional[float]) -> str:
    """In MiB."""
    return NONE if n_bytes is None else f'{n_bytes / _MIB:,.4g}'


def tasks_table(summary: Summary, size: str, found: Sequence[Quality]) -> str:
    """Shares of records that are answered right; empty where none was asked."""
    names = list(dict.fromkeys(name for q in found for name in q.tasks))
    if not names:
        return ''
    rows = [[
        summary.name(size, q.arm),
        *(cell(q.tasks.get(name), '.1%') for name in names),
    ] for q in found]
    return markdown_table(['model', *names], rows)


def not_asked(summary: Summary, size: str, missing: Sequence[NotAsked]) -> str:
    """Servers without answers, and why; empty where there is none."""
    told = [
        f'- {plain(summary.name(size, m.arm))}: {m.status}: '
        f'{plain(end_of(m.reason))}' for m in missing if m.size == size
    ]
    return '\n'.join(told)
