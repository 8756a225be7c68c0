"""A study's plan and its progress, as lines of text."""

from typing import Iterator, Optional

from foundry_upcycle.columns import in_columns
from foundry_upcycle.study.grid import Grid, Run
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.paper import paper_durations
from foundry_upcycle.study.tasks import list_tasks, state

__all__ = ['plan_lines', 'status_lines']


def plan_lines(grid: Grid) -> Iterator[str]:
    """Every run with its cost, and the sum.

    Where the grid is the paper's, also the tokens that the paper prints.
    """
    hardware = grid.study.hardware
    titles = ['run', 'active', 'lr', 'steps', 'tokens', 'FLOPs', 'fraction']
    runs = [run for run in grid.runs if run.serves is None]
    rows = [_plan_row(grid, run) for run in runs]
    flops = sum(run.own_flops for run in grid.trainings)
    total = ['all', '', '', '', '', f'{flops:.3g}', '']
    hours = ['hours', *(_run_hours(grid, run) for run in runs)]
    hours.append(_hours(hardware.hours(flops)))
    table = [[*row, cell] for row, cell in zip([titles, *rows, total], hours)]
    papers = [_paper_tokens(grid, run) for run in runs]
    if any(papers):
        cells = map(_compared, runs, papers)
        for row, cell in zip(table, ['paper, ours', *cells, '']):
            row.append(cell)
    yield from in_columns(table)
    yield ''
    yield 'active: parameters that a token meets'
    yield 'fraction: FLOPs over those of the pretraining'
    yield (
        f'hours: of one {hardware.name} at {hardware.mfu:.0%} of '
        f'{hardware.peak_flops:.3g} FLOPs a second, training alone'
    )
    served = dict.fromkeys(
        run.place.arm for run in grid.runs if run.serves is not None
    )
    if served:
        yield f"evaluated as well: {'; '.join(map(str, served))}"
    for arm, start in grid.shrunk.items():
        yield f'{arm}: {start}'
    if grid.shrunk:
        yield 'of these, steps and hours are of healing, FLOPs of all since the dense model'
    if any(papers):
        yield "paper, ours: tokens that the paper prints, and ours over them"


def status_lines(grid: Grid) -> Iterator[str]:
    """Every task with its state, and how much of all is done."""
    measured = Measured(grid)
    rows, flops, n_done = [], 0, 0
    tasks = list_tasks(grid)
    for task in tasks:
        found = state(measured, task)
        run = task.run
        steps = loss = ''
        if task.kind == 'train':
            steps = f'{measured.n_steps(run):,}/{run.n_steps:,}'
            if found == 'done':
                loss = f'{measured.final_loss(run):.3f}'
                flops += run.own_flops
        n_done += found in ('done', 'not needed')
        rows.append([task.name, found, steps, loss])
    yield from in_columns([['task', 'state', 'saved steps', 'final loss'],
                           *rows])
    share = flops / sum(run.own_flops for run in grid.trainings)
    yield ''
    yield f'{n_done} of {len(tasks)} tasks, {share:.0%} of the training FLOPs'


def _plan_row(grid: Grid, run: Run) -> list[str]:
    if grid.sweep_for(run):
        rate = 'swept'
    else:
        rate = f'{run.learning_rate or run.base.config.optimizer.lr:g}'
    start, n_steps = grid.dense_start(run), f'{run.n_steps:,}'
    if not run.is_training:
        rate = n_steps = ''
    return [
        run.name,
        _count(run.shape.n_active_params),
        rate,
        n_steps,
        f'{run.tokens:.3g}',
        f'{run.flops:.3g}',
        '' if run is start else _fraction(run.flops / start.flops),
    ]


def _paper_tokens(grid: Grid, run: Run) -> Optional[float]:
    """What the paper prints for a run; None where it has no such run."""
    place = run.place
    duration = paper_durations(grid.model(run)).get(place.duration)
    if duration is None:
        return None
    if place.arm is None:
        return duration.pretraining_tokens
    if run.base.source is not None:
        return None
    arm = 'upcycled' if run.base.is_upcycling else 'cpt'
    point = duration.arms[arm].get(place.budget)
    return None if point is None else point.tokens


def _compared(run: Run, paper: Optional[float]) -> str:
    return '' if paper is None else f'{paper:.3g} {run.tokens / paper:6.1%}'


def _fraction(fraction: float) -> str:
    return f'{fraction:.3f}' if fraction >= 0.001 else f'{fraction:.1e}'


def _run_hours(grid: Grid, run: Run) -> str:
    if not run.is_training:
        return ''
    return _hours(grid.study.hardware.hours(run.own_flops))


def _hours(hours: float) -> str:
    return f'{hours:,.0f}' if hours >= 10 else f'{hours:.2g}'


def _count(n_params: int) -> str:
    if n_params < 1e6:
        return f'{n_params / 1e3:.1f}k'
    return f'{n_params / 1e6:,.1f}M'
