"""Does what is not yet done of a study, one process after another."""

import os
import shlex
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Callable, Iterator

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.interrupted import mend_checkpoints
from foundry_upcycle.study.lock import exclusive, only_one
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.plan_files import write_yamls
from foundry_upcycle.study.preflight import check_runs
from foundry_upcycle.study.process import (
    REDIRECTING,
    Progress,
    RunFailed,
    duration_text,
    end_of_log,
    run_process,
)
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.run_yamls import last_checkpoint_name
from foundry_upcycle.study.tasks import (
    Kind,
    State,
    Task,
    command,
    list_tasks,
    state,
    waits_for,
)

__all__ = ['StudyRunner', 'dry_run']

# Before a command that starts in whatever environment.
_UNREDIRECTED = ('env', *(f'--unset={name}' for name in REDIRECTING))
# Processes of one task may share its lock; not with a runner that has it.
_HOLDING = ('flock', '--shared', '--timeout', '5')
# What a task is estimated by: evaluations by their number.
_Class = tuple[Kind, bool]


def dry_run(grid: Grid) -> Iterator[str]:
    """The commands that can start now, as lines of a shell script.

    Each marks its task while it goes on, by a lock. One that starts before what
    it needs is done would take an unfinished checkpoint. So what goes on and
    what waits is only named, in comments.

    Raises:
        ConfigError: As ``StudyRunner.run``, but for the scripts.
        TaskDataError: A task's file can't be used.
        CheckpointError: A checkpoint can't be opened.
    """
    study = grid.study
    with exclusive(study.folder):
        measured = _prepare(grid)
        states = [(task, _mended(measured, task)) for task in list_tasks(grid)]
    for task, found in states:
        if found in ('ready', 'started'):
            lock = task.lock(study)
            lock.parent.mkdir(exist_ok=True)
            words = (*_HOLDING, str(lock), *_UNREDIRECTED)
            yield shlex.join([*words, *command(grid, task)])
        elif found == 'waits':
            needs = ', '.join(waits_for(measured, task))
            yield f'# {task.name} after {needs}'
        elif found == 'running':
            yield f'# {task.name} goes on'


def _mended(measured: Measured, task: Task) -> State:
    """How far a task is, once it can go on from its newest checkpoint."""
    found = state(measured, task)
    if task.kind == 'train' and found in ('ready', 'started'):
        files = RunFiles(measured.grid.study, task.run.name)
        name = last_checkpoint_name(task.run.base)
        mend_checkpoints(files.checkpoints, name)
        # If only the link to the last one was missing, it is done.
        found = state(measured, task)
    return found


def _prepare(grid: Grid) -> Measured:
    """Writes and checks what is to be run."""
    measured = Measured(grid)
    write_yamls(grid, measured)
    check_runs(grid)
    _refuse_foreign_runs(measured)
    return measured


class StudyRunner:
    """Runs a study in the working folder, which has train.py and eval.py.

    Run again, it goes on where it was: a run resumes from its last checkpoint,
    and what is done is not done again.

    Args:
        grid: The study's runs.
        say: Shows a line.
    """

    def __init__(self, grid: Grid, say: Callable[[str], None] = print):
        self.grid = grid
        self.say = say
        self.failed: dict[str, str] = {}
        self._pace = _Pace(grid)

    def run(self) -> bool:
        """Does all tasks whose needs are met; a failure stops no other.

        Returns:
            Whether the study is complete.

        Raises:
            ConfigError: There are no scripts in the working folder, the
                study's folder has results of another study, another runner
                works on it, or Foundry could not run a YAML.
            TaskDataError: A task's file can't be used.
            CheckpointError: A checkpoint can't be opened.
        """
        _require_scripts()
        with exclusive(self.grid.study.folder) as lock:
            measured = _prepare(self.grid)
            tasks = list_tasks(self.grid)
            for index, task in enumerate(tasks):
                self._do(measured, task, tasks[index:], len(tasks), lock)
            left = [
                task for task in tasks
                if state(measured, task) not in ('done', 'not needed')
            ]
            for task in left:
                reason = self.failed.get(task.name) or _why(measured, task)
                self.say(f'[{task.name}] not done: {reason}')
        return not left

    def _do(
        self,
        measured: Measured,
        task: Task,
        left: tuple[Task, ...],
        n_tasks: int,
        lock: int,
    ) -> None:
        found = _mended(measured, task)
        number = f'{n_tasks - len(left) + 1}/{n_tasks}'
        if found not in ('ready', 'started'):
            self.say(f'[{number} {task.name}] {found}')
            return
        if task.kind == 'train' and self.grid.sweep_for(task.run):
            # Its learning rate is known now.
            write_yamls(self.grid, measured)
        time_left = self._pace.left(measured, left)
        self.say(
            f"[{number} {task.name}] {'goes on' if found == 'started' else 'starts'}"
            + (
                f'; about {duration_text(time_left)} left in all'
                if time_left else ''
            ),
        )
        started = time.monotonic()
        signs: list[float] = []  # When it showed that it works.

        def show(line: str) -> None:
            signs.append(time.monotonic() - started)
            self.say(f'[{number} {task.name}] {line}')

        try:
            self._process(measured, task, show, lock)
        except RunFailed as error:
            self.failed[task.name] = str(error)
            self.say(f'[{number} {task.name}] failed: {error}')
            return
        seconds = time.monotonic() - started
        if found == 'ready' and signs:  # Not the rest of a run.
            self._pace.add(task, signs[0], seconds)
        self.say(f'[{number} {task.name}] done in {duration_text(seconds)}')

    def _process(
        self,
        measured: Measured,
        task: Task,
        show: Callable[[str], None],
        lock: int,
    ) -> None:
        """Does a task; once more, after a fault of the machine that passes."""
        program, *arguments = command(self.grid, task)
        # The launcher of this environment.
        words = [str(_launcher(program)), *arguments]
        files = RunFiles(self.grid.study, task.run.name)
        log = files.train_log if task.kind == 'train' else files.eval_log
        progress = Progress()
        with only_one(task.lock(self.grid.study)) as is_free:
            if not is_free:
                raise RunFailed('it has just been started elsewhere.')
            try:
                run_process(words, log, progress, show, pass_fds=[lock])
            except RunFailed:
                if not progress.passing_fault:
                    raise
                show(f'tries once more, after {progress.passing_fault}')
                run_process(words, log, Progress(), show, pass_fds=[lock])
            finally:
                measured.refresh()
        if state(measured, task) != 'done':
            raise RunFailed(
                'it ended without an error and without all that it was to '
                f'measure. {end_of_log(log)}',
            )


class _Pace:
    """Estimates how long is left, from what this runner has done.

    A training takes a time to start, and one for its FLOPs; an evaluation the
    same as the others.
    """

    def __init__(self, grid: Grid):
        self._hardware = grid.study.hardware
        self._starts: dict[Kind, list[float]] = defaultdict(list)
        self._seconds: dict[_Class, float] = defaultdict(float)
        self._amount: dict[_Class, float] = defaultdict(float)

    def add(self, task: Task, to_start: float, seconds: float) -> None:
        """Counts a task.

        Args:
            task: What was done, all of it.
            to_start: Seconds before the first sign of work.
            seconds: All of them.
        """
        self._starts[task.kind].append(to_start)
        self._seconds[_class(task)] += seconds - to_start
        self._amount[_class(task)] += _amount(task)

    def left(self, measured: Measured, tasks: tuple[Task, ...]) -> float:
        """Seconds; what is not known from this runner counts by FLOPs."""
        return sum(
            self._estimate(task)
            for task in tasks
            if state(measured, task) not in ('done', 'not needed')
        )

    def _estimate(self, task: Task) -> float:
        starts = self._starts[task.kind]
        if not starts:
            by_flops = 3600 * self._hardware.hours(task.run.flops)
            return by_flops if task.kind == 'train' else 0.0
        of_kind = [key for key in self._seconds if key[0] == task.kind]
        keys = [_class(task)] if _class(task) in of_kind else of_kind
        seconds = sum(self._seconds[key] for key in keys)
        rate = seconds / sum(self._amount[key] for key in keys)
        return sum(starts) / len(starts) + rate * _amount(task)


def _class(task: Task) -> _Class:
    return task.kind, task.run.base.is_upcycling


def _amount(task: Task) -> float:
    return float(task.run.flops) if task.kind == 'train' else 1.0


def _why(measured: Measured, task: Task) -> str:
    if state(measured, task) == 'running':
        return 'it goes on elsewhere.'
    needs = waits_for(measured, task)
    if needs:
        return f"it waits for {', '.join(needs)}."
    # All is trained, and still nothing won.
    return (
        'all learning rates of its sweep diverged. Add lower ones to the study '
        'YAML.'
    )


def _refuse_foreign_runs(measured: Measured) -> None:
    """Composer would log to a run of the same name, of whichever study."""
    study = measured.grid.study
    for task in list_tasks(measured.grid):
        files = RunFiles(study, task.run.name)
        traces = files.train_log, files.checkpoints, task.lock(study)
        is_new = not any(trace.exists() for trace in traces)
        if is_new and measured.tracking.keys(task.name):
            raise ConfigError(
                'name',
                study.name,
                f'{study.tracking_uri} has a run {task.name} in the experiment '
                f'of this name, which {study.folder} has not started.',
                "name the study otherwise; or keep to that study's folder.",
            )


def _launcher(name: str) -> Path:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise ConfigError(
            'environment',
            str(path.parent),
            f'{name} is not installed beside this Python.',
            'install foundry_upcycle into an environment, and run its '
            'foundry-upcycle.',
        )
    return path


def _require_scripts() -> None:
    for script in ('train.py', 'eval.py'):
        if not Path(script).is_file():
            raise ConfigError(
                'working folder',
                os.getcwd(),
                f'there is no {script} in it.',
                'run this where foundry_upcycle or LLM Foundry has its '
                'train.py and eval.py.',
            )
