"""What the report says beside its figures and tables, as Markdown."""

import json
from typing import Any, Iterable, Iterator

from benchmarks.inference.report.cells import (
    cell,
    end_of,
    markdown_table,
    per_cent,
    rate_name,
    span,
)
from benchmarks.inference.report.engines import machine_key, prefix_cache_hits
from benchmarks.inference.report.markdown import Markup, code, plain
from benchmarks.inference.report.maximum import (
    PLATEAU,
    PLATEAU_BATCHES,
    find_maxima,
    too_short,
)
from benchmarks.inference.report.paper import paper_model, paper_size
from benchmarks.inference.report.records import Point
from benchmarks.inference.report.summary import Summary

__all__ = [
    'disagreements',
    'how_to_read',
    'how_to_read_quality',
    'left_out',
    'not_done',
    'verdict',
    'warnings',
    'workload_lines',
]

# Two measures of a maximum that differ by more are told.
_MOST_APART = 0.05


def warnings(summary: Summary) -> Iterator[str]:
    """What must be known before any figure is read."""
    counts = {
        status: sum(point.status == status
                    for point in summary.points)
        for status in ('failed', 'skipped')
    }
    told = [f'{n} {status}' for status, n in counts.items() if n]
    if told:
        yield (
            f"**Not all points are there**: {' and '.join(told)}, beside "
            f'{len(summary.done)} that are done. What follows is made from '
            'those; the others are listed under "Points that are not there".'
        )
    versions = {machine_key(point) for point in summary.done}
    if len(versions) > 1:
        yield (
            f'**Measured on {len(versions)} machines or versions**, listed '
            'below: what differs between points may be theirs.'
        )
    cached = prefix_cache_hits(summary)
    if cached:
        yield (
            '**Prompts were found in the prefix cache**, so these points are '
            'faster than they should be: '
            f"{', '.join(code(point.id) for point in cached)}."
        )


def not_done(summary: Summary) -> str:
    """What failed or was skipped, by name and reason; may be empty."""
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in summary.points:
        if point.status != 'done':
            name = f'{point.size}, {summary.name(point.size, point.arm)}'
            key = point.status, name, end_of(point.reason)
            groups.setdefault(key, []).append(point)
    rows = [[
        status,
        name,
        Markup(
            '; '.join(
                f'{rate_name(p.rate)}, run {p.run + 1} ({code(p.id)})'
                for p in sorted(points, key=_place)
            ),
        ) if status == 'failed' else f'{len(points)} points',
        reason,
    ]
            for (status, name, reason), points in sorted(groups.items())]
    head = ['', 'model', 'points (rate, run)', 'reason']
    return markdown_table(head, rows, n_left=len(head)) if rows else ''


def _place(point: Point) -> tuple[Any, ...]:
    return point.rate is None, point.rate or 0.0, point.run


def verdict(summary: Summary) -> Iterator[str]:
    """What each size comes to, in a sentence; says so where it can't."""
    for size in summary.sizes:
        maxima = find_maxima(summary, size)
        drops = [
            f'{summary.name(size, arm)} {cell(found.drop, ".1%")}'
            for arm, found in maxima.items()
            if found.drop
        ]
        if not drops:
            text = f'{size}: no drop yet: it takes a maximum of both models'
            yield f'- {plain(text)}.'
            continue
        text = (
            f'{size}: drop of maximum throughput against the dense model: '
            f"{', '.join(drops)}"
        )
        paper = paper_size(size)
        theirs = [
            f'{summary.name(size, arm)} {per_cent(model.drop)}'
            for arm in maxima
            if (model := paper_model(size, arm)) and model.drop
        ]
        if paper and theirs:
            text += f'. The paper ({paper.name}): {", ".join(theirs)}'
        yield f'- {plain(text)}.'


def disagreements(summary: Summary, size: str) -> Iterator[str]:
    """Where the two measures of a maximum are apart."""
    for arm, found in find_maxima(summary, size).items():
        apart = found.disagreement
        if apart is not None and abs(apart) > _MOST_APART:
            name = plain(summary.name(size, arm))
            at_once_more = (apart > 0) == (found.kind == PLATEAU)
            yield (
                f'**The two measures of {name} differ by '
                f'{per_cent(abs(apart), 1)}**: with all requests at once it '
                f"serves {'more' if at_once_more else 'less'} than at "
                'saturated rates.'
            )


def left_out(summary: Summary, size: str) -> str:
    """How many saturated points have too few requests; empty if none."""
    told = [
        f'{summary.name(size, arm)} {n}'
        for arm in (*summary.arms(size), *summary.variants(size))
        if (n := len(too_short(summary, size, arm)))
    ]
    return (
        '**Saturated points with too few requests**, which no maximum is made '
        f"of: {plain(', '.join(told))}. They have fewer than {PLATEAU_BATCHES} "
        'requests for each of the most answers under way at once: ask for more '
        '`requests`.'
    ) if told else ''


def workload_lines(summary: Summary) -> str:
    """What was asked of the servers, size by size."""
    return '\n'.join(_workload_line(summary, size) for size in summary.sizes)


def _workload_line(summary: Summary, size: str) -> str:
    points = summary.of_size(size)
    workload = points[0].config['workload']
    n_requests = [len(p.requests.start) for p in points if p.requests]
    routings = _code(
        p.config.get('routing') for p in points if not p.arm.is_dense
    )
    return (
        f'- {plain(size)}: {len({point.run for point in points})} runs, '
        f"{plain(workload.get('input_tokens'))} input and "
        f"{plain(workload.get('output_tokens'))} output tokens a request, "
        f"{span(n_requests, ',.0f')} requests a point; engine "
        f"{_code(point.config.get('engine') for point in points)}; routing of "
        f'mixtures {routings}.'
    )


def _code(values: Iterable[Any]) -> str:
    """Settings as they are, where several differ all of them."""
    found = {json.dumps(value, sort_keys=True) for value in values}
    return ' or '.join(map(code, sorted(found))) or '-'


def how_to_read(summary: Summary) -> str:
    """What is measured how, what intervals are over, what is left out."""
    omitted = plain(
        'Left out: networks, tokenizers and requests of different lengths; '
        'what a text does to routing and drafting where weights or routing are '
        f'simulated{summary.labelled}. Figures of one machine and engine '
        'version say nothing of others.',
    )
    return '\n'.join([
        '- Arrivals are open loop: requests are sent at random times (Poisson) '
        'at the offered rate, whether or not earlier ones are answered. Each '
        'rate and run has prompts and times of its own, the same for every '
        'model. Answers have a fixed number of tokens.',
        '- Throughput is of input and output tokens a second, in the steady '
        'window: without the start, when the server fills, and the end, when '
        'it runs empty. Beside it the load generator\'s own figure over the '
        'whole run, with both. Latency is from sending a request to its last '
        'token; its means and percentiles are of the requests that are sent '
        'when the server is full, without the first ones.',
        '- Saturated: less than 95 % of the offered rate is achieved, or the '
        'requests in flight keep growing. Latency is then that of a queue and '
        'no property of the model; such points are drawn hollow, and left out '
        'of what is said of latency.',
        '- Maximum throughput of a run: mean of its steady throughput at rates '
        'that saturate more than half of the runs. Of few requests that says '
        f'little, so a point counts only with at least {PLATEAU_BATCHES} '
        'requests for each of the most answers under way at once in it. The '
        'other measure is the unbounded rate, where all requests come at once; '
        f'differences of more than {per_cent(_MOST_APART)} are told. Models '
        'are compared by saturated rates if all of them have that, else by the '
        'unbounded rate if all have that, else by the one that more have: '
        'others show a dash.',
        '- Drops are of pairs of runs, which were measured one after the '
        'other. At the unbounded rate a pair has the same prompts; at '
        'saturated rates only where both models saturate at the same ones.',
        '- Models on different numbers of devices are compared by their '
        'throughput per device; latency is as it is.',
        "- Intervals are of 95 % over runs, by Student's t: of drops with the "
        'error that a bootstrap of pairs of runs has, of gaps closed with that '
        'of the linearised ratio. "n/a": one run has none, nor has the share '
        'of a gap that is not told apart from none. With few runs they are '
        'wide, and rest on runs being about normally distributed. "-": does '
        'not apply, or was not measured.',
        f'- {omitted}',
    ])


def how_to_read_quality() -> str:
    """What quality is measured how, and what its intervals are over."""
    return '\n'.join([
        '- Loss: mean negative log-likelihood of the tokens of held-out text, '
        'as the very server says it whose speed is measured. The first token '
        'of each document is not scored, nor are its bytes counted.',
        '- "less the reference\'s" is over the same documents, in pairs; '
        '"share of the gain" is (baseline - model) / (baseline - reference), of '
        'losses: 100 % is as good as the reference.',
        '- "same likeliest token" is at each place of the texts, after the '
        'text\'s own tokens: an early difference changes nothing that '
        'follows. Greedy answers do go on from their own tokens, so that one '
        'near tie may change all of the rest.',
        '- The front: models than which none is better in one of loss and '
        'cost and no worse in the other, by means; intervals may overlap.',
        '- These intervals are of 95 %, of one model and not over trainings: '
        "over documents and prompts by Student's t of the linearised ratio, of "
        "answers that are wholly the same or right by Wilson's score.",
    ])
