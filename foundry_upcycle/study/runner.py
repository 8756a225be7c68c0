"""Does what is not yet done of a study, each task a process of its own."""

import os
import shlex
import sys
import time
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.interrupted import mend_checkpoints
from foundry_upcycle.study.lock import exclusive, only_one
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.plan_files import write_yamls
from foundry_upcycle.study.preflight import check_runs
from foundry_upcycle.study.process import (
    REDIRECTING,
    Processes,
    Progress,
    RunFailed,
    duration_text,
    end_of_log,
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
# How many processes Composer's launcher starts, if it isn't one a GPU.
_LAUNCHING = ('WORLD_SIZE', 'LOCAL_WORLD_SIZE')
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
            yield shlex.join([*words, *command(measured, task)])
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


@dataclass
class _Job:
    """A task that goes on.

    Args:
        task: Which.
        number: Its place among all, to show.
        found: ``ready`` or ``started``.
        say: Shows a line.
    """

    task: Task
    number: str
    found: State
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    # Seconds before the first sign of work.
    to_start: Optional[float] = None

    def show(self, line: str) -> None:
        """Shows a line of what goes on."""
        if self.to_start is None:
            self.to_start = self.seconds
        self.tell(line)

    def tell(self, text: str) -> None:
        self.say(f'[{self.number} {self.task.name}] {text}')

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class StudyRunner:
    """Runs a study in the working folder, which has train.py and eval.py.

    Run again, it goes on where it was: a run resumes from its last checkpoint,
    and what is done is not done again.

    Args:
        grid: The study's runs.
        say: Shows a line.
        jobs: How many tasks go on at the same time.
    """

    def __init__(
        self,
        grid: Grid,
        say: Callable[[str], None] = print,
        jobs: int = 1,
    ):
        self.grid = grid
        self.say = say
        self.jobs = jobs
        self.failed: dict[str, str] = {}
        self._pace = _Pace(grid)
        self._processes = Processes(jobs)

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
            if self.jobs > 1:
                measured.tracking.make_experiment()
            # Left for whatever reason, processes end before threads are
            # waited for.
            with ThreadPoolExecutor(self.jobs) as pool, self._processes:
                self._do_all(measured, pool, lock)
            left = [
                task for task in list_tasks(self.grid)
                if state(measured, task) not in ('done', 'not needed')
            ]
            for task in left:
                reason = self.failed.get(task.name) or _why(measured, task)
                self.say(f'[{task.name}] not done: {reason}')
        return not left

    def _do_all(
        self,
        measured: Measured,
        pool: ThreadPoolExecutor,
        lock: int,
    ) -> None:
        """In the order of the study, but for what waits."""
        tasks = list_tasks(self.grid)
        todo = {
            f'{index}/{len(tasks)}': task
            for index, task in enumerate(tasks, 1)
        }
        going: dict[Future[None], _Job] = {}
        while True:
            for number, task in [*todo.items()]:
                if len(going) == self.jobs:
                    break
                found = _mended(measured, task)
                if found == 'waits':
                    continue
                del todo[number]
                job = _Job(task, number, found, self.say)
                if found not in ('ready', 'started'):
                    job.tell(found)
                    continue
                others = [other.task for other in going.values()]
                self._announce(measured, job, [*others, *todo.values()])
                words = command(measured, task)
                going[pool.submit(self._process, job, words, lock)] = job
            if not going:
                return
            ended, _ = wait(going, return_when=FIRST_COMPLETED)
            measured.refresh()
            for each in ended:
                self._finish(measured, going.pop(each), each)

    def _announce(
        self,
        measured: Measured,
        job: _Job,
        others: Sequence[Task],
    ) -> None:
        run = job.task.run
        waited = self.grid.sweep_for(run) or run.source is not None
        if job.task.kind == 'train' and waited:
            # Its learning rate and what it starts from are known now.
            write_yamls(self.grid, measured)
        seconds = self._pace.left(measured, [job.task, *others]) / self.jobs
        begins = 'goes on' if job.found == 'started' else 'starts'
        left = f'; about {duration_text(seconds)} left in all'
        job.tell(begins + (left if seconds else ''))

    def _finish(self, measured: Measured, job: _Job, ended: Future) -> None:
        task = job.task
        try:
            ended.result()
            if state(measured, task) != 'done':
                raise RunFailed(
                    'it ended without an error and without all that it was to '
                    f'measure. {end_of_log(self._log(task))}',
                )
        except RunFailed as error:
            self.failed[task.name] = str(error)
            job.tell(f'failed: {error}')
            return
        seconds = job.seconds
        if job.found == 'ready' and job.to_start:  # Not the rest of a run.
            self._pace.add(task, job.to_start, seconds)
        job.tell(f'done in {duration_text(seconds)}')

    def _process(self, job: _Job, words: Sequence[str], lock: int) -> None:
        """Does a task; once more, after a fault of the machine that passes."""
        program, *arguments = words
        words = [*_start(program), *arguments]
        log, progress = self._log(job.task), Progress()
        run = self._processes.run
        with only_one(job.task.lock(self.grid.study)) as is_free:
            if not is_free:
                raise RunFailed('it has just been started elsewhere.')
            try:
                run(words, log, progress, job.show, pass_fds=[lock])
            except RunFailed:
                if not progress.passing_fault:
                    raise
                job.show(f'tries once more, after {progress.passing_fault}')
                run(words, log, Progress(), job.show, pass_fds=[lock])

    def _log(self, task: Task) -> Path:
        return task.log(self.grid.study)


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

    def left(self, measured: Measured, tasks: Sequence[Task]) -> float:
        """Seconds; what is not known from this runner counts by FLOPs."""
        return sum(
            self._estimate(task)
            for task in tasks
            if state(measured, task) not in ('done', 'not needed')
        )

    def _estimate(self, task: Task) -> float:
        starts = self._starts[task.kind]
        if not starts:
            by_flops = 3600 * self._hardware.hours(task.run.own_flops)
            return by_flops if task.kind == 'train' else 0.0
        of_kind = [key for key in self._seconds if key[0] == task.kind]
        keys = [_class(task)] if _class(task) in of_kind else of_kind
        seconds = sum(self._seconds[key] for key in keys)
        rate = seconds / sum(self._amount[key] for key in keys)
        return sum(starts) / len(starts) + rate * _amount(task)


def _class(task: Task) -> _Class:
    return task.kind, task.run.base.is_upcycling


def _amount(task: Task) -> float:
    return float(task.run.own_flops) if task.kind == 'train' else 1.0


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
        traces = files.log, files.checkpoints, task.lock(study)
        is_new = not any(trace.exists() for trace in traces)
        if is_new and measured.tracking.keys(task.name):
            raise ConfigError(
                'name',
                study.name,
                f'{study.tracking_uri} has a run {task.name} in the experiment '
                f'of this name, which {study.folder} has not started.',
                "name the study otherwise; or keep to that study's folder.",
            )


def _start(program: str) -> list[str]:
    """What starts a program, in this environment.

    Composer's launcher takes as long to import Composer as the script itself.
    Where it would start one process, Python does.
    """
    from torch.cuda import device_count
    if program == 'composer' and device_count() < 2 and all(
            os.environ.get(name, '1') == '1' for name in _LAUNCHING):
        return [sys.executable]
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        raise ConfigError(
            'environment',
            str(path.parent),
            f'{program} is not installed beside this Python.',
            'install foundry_upcycle into an environment, and run its '
            'foundry-upcycle.',
        )
    return [str(path)]


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
