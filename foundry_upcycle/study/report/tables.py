"""The tables of what a study measured, as Markdown."""

from typing import Iterator, Optional, Sequence

from foundry_upcycle.markdown import bold, plain
from foundry_upcycle.study.config import ModelGrid, number_text
from foundry_upcycle.study.grid import Place, Run
from foundry_upcycle.study.report.cells import (
    NO_NUMBER,
    NONE,
    budget_title,
    markdown_table,
    mean_cell,
    value_cell,
)
from foundry_upcycle.study.report.metrics import Quality, pool_answers
from foundry_upcycle.study.report.relative import (
    change_of_loss,
    quality_of_start,
    relative_to_start,
)
from foundry_upcycle.study.report.serving import Serving, arm_costs
from foundry_upcycle.study.report.summary import Summary

__all__ = [
    'change_table',
    'result_table',
    'seconds_table',
    'serving_table',
    'sweep_tables',
    'task_tables',
]

_DENSE = 'dense start'


def result_table(summary: Summary, model: ModelGrid) -> str:
    """Every point: what was spent, and what came of it; may be empty."""
    head = ['duration', 'arm', budget_title(model), 'seeds', 'steps', 'tokens']
    head.append('FLOPs')
    head += [metric.title for metric in summary.metrics]
    if summary.quality:
        head.append('relative to dense start')
    rows = [
        _result_row(summary, point)
        for duration in model.durations
        for point in _points(summary, model, duration)
    ]
    return markdown_table(head, rows, n_left=2) if rows else ''


def _points(
    summary: Summary,
    model: ModelGrid,
    duration: str,
) -> Iterator[Place]:
    """Those that have a result, the dense start first."""
    start = Place(model.name, duration)
    if summary.results(start):
        yield start
    for arm in model.arms:
        yield from summary.points(model, duration, arm)


def _result_row(summary: Summary, point: Place) -> list[str]:
    run = summary.run(point)
    is_start = point.arm is None
    row = [
        point.duration,
        point.arm or _DENSE,
        NONE if is_start else number_text(point.budget),
        NONE if is_start else str(len(summary.results(point))),
        f'{run.n_steps:,}' if run.n_steps else NONE,
        f'{run.tokens:.3e}',
        f'{run.flops:.3e}',
        *(mean_cell(summary.mean(metric, point)) for metric in summary.metrics),
    ]
    if summary.quality:
        row.append(NONE if is_start else _relative(summary, point))
    return row


def _relative(summary: Summary, point: Place) -> str:
    start = quality_of_start(summary, point)
    if start is not None and start.value <= 0:
        return NO_NUMBER
    return mean_cell(relative_to_start(summary, point), '+.1%')


def change_table(summary: Summary, model: ModelGrid) -> str:
    """What each point changed of the dense start's held-out losses.

    It may be empty.
    """
    metrics = [metric for metric in summary.metrics if metric.is_held_out]
    rows = []
    for duration in model.durations:
        for arm in model.arms:
            for point in summary.points(model, duration, arm):
                changes = [change_of_loss(summary, m, point) for m in metrics]
                if any(changes):
                    cells = [mean_cell(change, '+.3f') for change in changes]
                    budget = number_text(point.budget)
                    rows.append([duration, arm, budget, *cells])
    titles = [metric.title for metric in metrics]
    head = ['duration', 'arm', budget_title(model), *titles]
    return markdown_table(head, rows, n_left=2) if rows else ''


def sweep_tables(summary: Summary, model: ModelGrid) -> Iterator[str]:
    """A table for each arm whose learning rate a sweep finds."""
    for arm in model.arms:
        runs = [
            run for run in summary.grid.trainings if run.role == 'sweep'
            and run.place.model == model.name and run.place.arm == arm
        ]
        if runs:
            place = runs[0].place
            head = ['learning rate', 'final training loss', '']
            rows = [_sweep_row(summary, run) for run in runs]
            title = plain(
                f'{arm}, at {place.duration}, '
                f'{model.budget_text(place.budget)}, seed {place.seed}:',
            )
            yield f'{title}\n\n{markdown_table(head, rows)}'


def _chosen(edge: Optional[str]) -> str:
    # Beyond the edge it may be better still.
    return 'chosen' if edge is None else f'chosen, {edge} tried'


def _sweep_row(summary: Summary, run: Run) -> list[str]:
    done = summary.study.results
    # A sweep has found its rate when all of it is trained, evaluated or not.
    sweep = summary.grid.candidates(run.place)
    best = summary.study.best(sweep)
    is_chosen = best is not None and best.run.name == run.name
    rates = [other.learning_rate or 0.0 for other in sweep]
    edges = {min(rates): 'the lowest', max(rates): 'the highest'}
    edge = edges.get(run.learning_rate or 0.0)
    return [
        f'{run.learning_rate:g}',
        f'{done[run.name].final_loss:.4f}'
        if run.name in done else 'not finished',
        _chosen(edge) if is_chosen else '',
    ]


def task_tables(summary: Summary, model: ModelGrid) -> Iterator[str]:
    """Accuracies at the largest budget of each duration."""
    if summary.quality is None:
        return
    for duration in model.durations:
        budget = summary.largest_begun(model, duration)
        if budget is not None:
            points = [Place(model.name, duration)] + [
                Place(model.name, duration, arm, budget) for arm in model.arms
            ]
            table = _task_table(summary, summary.quality, points)
            title = plain(f'{duration}, {model.budget_text(budget)}:')
            yield f'{title}\n\n{table}'


def _task_table(
    summary: Summary,
    quality: Quality,
    points: Sequence[Place],
) -> str:
    answers = {
        point.arm or _DENSE:
        pool_answers(list(summary.results(point).values()))
        for point in points
    }
    scores = {
        name: quality.scores(tasks)
        for name, tasks in answers.items()
        if tasks is not None
    }
    counts = next(iter(scores.values())).n_examples
    rows = []
    for task in (benchmark.label for benchmark in quality.gauntlet.benchmarks):
        n = counts[task]
        of_task = [of.accuracies[task] for of in scores.values()]
        rows.append([
            task,
            NONE if n is None else f'{n:,}',
            *(value_cell(one.value, one.interval, '.1%') for one in of_task),
        ])
    averages = [of.averages[quality.metric.key] for of in scores.values()]
    rows.append([
        bold(quality.metric.title),
        '',
        *(value_cell(one.value, one.interval, '.3f') for one in averages),
    ])
    return markdown_table(['task', 'examples', *scores], rows)


def serving_table(
    summary: Summary,
    model: ModelGrid,
    serving: Serving,
) -> str:
    """What each arm costs to serve, and what it reaches; may be empty."""
    metric = summary.best_measure
    rows = [[
        arm,
        duration,
        number_text(point.budget),
        value_cell(cost.value, (cost.low, cost.high), '.2f'),
        mean_cell(summary.mean(metric, point)),
    ] for arm, cost in arm_costs(summary, model, serving).items()
            if cost is not None
            for duration in model.durations
            for point in summary.points(model, duration, arm)]
    title = budget_title(model)
    head = ['arm', 'duration', title, 'serving cost (dense = 1)', metric.title]
    return markdown_table(head, rows, n_left=2) if rows else ''


def seconds_table(summary: Summary) -> str:
    """What each run took to train."""
    done = summary.study.results
    trained = summary.grid.trainings
    results = [done[run.name] for run in trained if run.name in done]
    rows = [[
        result.run.name,
        f'{result.run.n_steps:,}',
        f'{result.run.own_flops:.3e}',
        NONE if result.seconds is None else f'{result.seconds:,.0f}',
    ] for result in results]
    known = [result.seconds for result in results if result.seconds is not None]
    rows.append([
        bold('total'),
        f'{sum(result.run.n_steps for result in results):,}',
        f'{sum(result.run.own_flops for result in results):.3e}',
        f'{sum(known):,.0f}',
    ])
    return markdown_table(['run', 'steps', 'FLOPs', 'training (s)'], rows)
