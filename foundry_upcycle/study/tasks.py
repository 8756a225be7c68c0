"""What is to be done for a study, in order, and what of it is done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Literal, Optional

from foundry_upcycle.study.config import Study
from foundry_upcycle.study.grid import Grid, Run, evaluation_run_name
from foundry_upcycle.study.lock import is_held
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import saved_checkpoint, shrunk_checkpoint

__all__ = [
    'Kind',
    'State',
    'Task',
    'command',
    'list_tasks',
    'state',
    'waits_for',
]

Kind = Literal['train', 'shrink', 'evaluate']
# What `foundry-upcycle study status` says of a task. One that is not needed
# evaluates a run that lost its sweep.
State = Literal['done', 'ready', 'started', 'running', 'waits', 'not needed']

_SCRIPTS = {'train': 'train.py', 'evaluate': 'eval.py'}


@dataclass(frozen=True)
class Task:
    """One process: it trains or evaluates a run, or shrinks what it starts from.

    Args:
        kind: Which of these.
        run: The run; where several start from what is shrunk, one of them.
    """

    kind: Kind
    run: Run

    @property
    def name(self) -> str:
        """That of the task's run in MLflow, if it has one."""
        if self.kind == 'shrink':
            return str(self.run.shrink_name)
        name = self.run.name
        return name if self.kind == 'train' else evaluation_run_name(name)

    def lock(self, study: Study) -> Path:
        """What is held while it goes on, wherever it does."""
        return RunFiles(study, self.name).lock

    def log(self, study: Study) -> Path:
        """Where its output goes."""
        return RunFiles(study, self.name).log


def list_tasks(grid: Grid) -> tuple[Task, ...]:
    """All tasks, each after those that it needs."""
    return tuple(_tasks(grid))


def _tasks(grid: Grid) -> Iterator[Task]:
    shrunk: set[Optional[str]] = {None}
    for run in grid.runs:
        if run.shrink_name not in shrunk:
            shrunk.add(run.shrink_name)
            yield Task('shrink', run)
        if run.is_training:
            yield Task('train', run)
        if grid.evaluation is None or run.role == 'source':
            continue
        if run.role != 'sweep':
            yield Task('evaluate', run)
            continue
        # Which of a sweep's runs is evaluated is known after the last one.
        others = grid.candidates(run.place)
        if run == others[-1]:
            for other in others:
                yield Task('evaluate', other)


def state(measured: Measured, task: Task) -> State:
    """How far a task is.

    Args:
        measured: What the study's runs have left.
        task: One of its tasks.
    """
    found = _state(measured, task)
    can_start = found in ('ready', 'started')
    if can_start and is_held(task.lock(measured.grid.study)):
        return 'running'
    return found


def _state(measured: Measured, task: Task) -> State:
    grid, run = measured.grid, task.run
    if task.kind == 'shrink':
        if measured.is_shrunk(run):
            return 'done'
        waits = waits_for(measured, task) or measured.source(run) is None
        return 'waits' if waits else 'ready'
    if task.kind == 'train':
        if measured.is_trained(run):
            return 'done'
        if waits_for(measured, task):
            return 'waits'
        if grid.sweep_for(run) and measured.learning_rate(run) is None:
            return 'waits'  # All of it diverged.
        return 'started' if measured.n_steps(run) else 'ready'
    if waits_for(measured, task):
        return 'waits'
    if run.role == 'sweep':
        best = measured.best(grid.candidates(run.place))
        if best is None:
            return 'waits'  # All of it diverged.
        if best.name != run.name:
            return 'not needed'
    return 'done' if measured.is_evaluated(run) else 'ready'


def waits_for(measured: Measured, task: Task) -> list[str]:
    """Names of the tasks that must be done before a task can start."""
    grid, run = measured.grid, task.run
    if task.kind == 'train':
        needed = [grid[name] for name in run.needs]
    elif task.kind == 'shrink':
        assert run.source is not None  # For pyright.
        needed = [*grid.candidates(run.source)]
    else:
        needed = [*grid.candidates(run.place)]
    names = [
        need.weights.name
        if need.weights.is_training else str(need.shrink_name)
        for need in needed
        if not measured.is_trained(need)
    ]
    is_to_shrink = task.kind == 'train' and run.source is not None
    if is_to_shrink and not measured.is_shrunk(run):
        names.append(str(run.shrink_name))
    return names


def command(measured: Measured, task: Task) -> list[str]:
    """What does a task, from a folder with train.py and eval.py.

    Args:
        measured: What the study's runs have left.
        task: One of its tasks, which can start.

    Returns:
        Program and arguments.
    """
    grid = measured.grid
    if task.kind == 'shrink':
        return _shrink_command(measured, task.run)
    files = RunFiles(grid.study, task.run.name)
    yaml = files.train_yaml if task.kind == 'train' else files.eval_yaml
    return ['composer', _SCRIPTS[task.kind], str(yaml)]


def _shrink_command(measured: Measured, run: Run) -> list[str]:
    grid, source = measured.grid, measured.source(run)
    shrunk = run.base.phase.shrunk
    assert source is not None and shrunk is not None  # As the task can start.
    return [
        'foundry-upcycle',
        'shrink',
        saved_checkpoint(grid, source),
        shrunk_checkpoint(grid, run),
        *shrunk.options,
        '--format',
        'dcp' if run.base.saves_sharded else 'pt',
        # Of a source that has been trained anew.
        '--overwrite',
    ]
