"""A study is run in order, once, by one runner; a failure stops no other run."""

import fcntl
import math
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Sequence

import pytest
import torch
import yaml
from small_study import (
    LOSS,
    leave,
    leave_evaluation,
    leave_training,
    log,
    small_grid,
)

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study import runner
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.measured import Measured
from foundry_upcycle.study.plan_files import write_yamls
from foundry_upcycle.study.process import RunFailed
from foundry_upcycle.study.run_files import RunFiles
from foundry_upcycle.study.runner import StudyRunner, dry_run
from foundry_upcycle.study.tasks import Task, list_tasks, state

SWEPT = 'm_short_upcycled_0.4_s17'


class Machine:
    """Stands in for processes: a task leaves at once what it would leave."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.tasks = {task.name: task for task in list_tasks(grid)}
        self.commands: dict[str, list[str]] = {}
        self.broken: set[str] = set()  # They end with an error.
        self.idle: set[str] = set()  # They end without one, and do nothing.
        self.faults: dict[str, str] = {}  # They end once, and say this.

    def __call__(
        self,
        command: Sequence[str],
        log_path: Path,
        progress: Any,
        say: Any,
        pass_fds: Sequence[int],
    ) -> None:
        # What it starts keeps the lock.
        (lock, ) = pass_fds
        assert os.path.samestat(
            os.fstat(lock),
            (self.grid.study.folder / '.lock').stat(),
        )
        name = Path(command[2]).stem
        if fault := self.faults.pop(name, None):
            progress(fault)
            raise RunFailed('exit status 1.')
        assert name not in self.commands, 'it is run twice'
        self.commands[name] = list(command)
        log_path.parent.mkdir(exist_ok=True)
        log_path.write_text('the end\n')
        if name in self.broken:
            raise RunFailed('exit status 1.')
        say('works')
        if name not in self.idle:
            loss = {'loss': 2.5} if name.endswith('lr0.001') else {}
            leave(self.grid, self.tasks[name], **loss)


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    for script in ('train.py', 'eval.py'):
        (tmp_path / script).touch()
    monkeypatch.chdir(tmp_path)
    # The tasks' files are not there.
    monkeypatch.setattr(runner, 'check_runs', lambda _: None)
    return small_grid(tmp_path, seeds=[17, 18])


@pytest.fixture
def machine(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(grid)
    monkeypatch.setattr(
        runner.Processes,
        'run',
        lambda _, *args, **kwargs: found(*args, **kwargs),
    )
    return found


def test_everything_is_run_in_order(
    grid: Grid,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
):
    # As a trainer in this process leaves it.
    monkeypatch.setenv('WORLD_SIZE', '1')
    said: list[str] = []
    assert StudyRunner(grid, said.append).run()
    assert list(machine.commands) == [
        'm_short',
        'm_short_eval',
        f'{SWEPT}_lr0.0001',
        f'{SWEPT}_lr0.001',
        f'{SWEPT}_lr0.001_eval',
        'm_short_cpt_0.4_s17',
        'm_short_cpt_0.4_s17_eval',
        'm_short_cpt_0.4_s18',
        'm_short_cpt_0.4_s18_eval',
        'm_short_upcycled_0.4_s18',
        'm_short_upcycled_0.4_s18_eval',
    ]
    assert f'[5/12 {SWEPT}_lr0.0001_eval] not needed' in said
    program, script, path = machine.commands['m_short_upcycled_0.4_s18']
    # One process, without a GPU: Composer's launcher would only delay it.
    assert (program, script) == (sys.executable, 'train.py')
    optimizer = yaml.safe_load(Path(path).read_text())['optimizer']
    # quickstart_upcycle.yaml: 5e-4 with a weight decay of 2.5e-5.
    assert (optimizer['lr'], optimizer['weight_decay']) == (1e-3, 5e-5)
    assert machine.commands['m_short_eval'][1] == 'eval.py'


def test_what_is_done_is_not_run_again(grid: Grid, machine: Machine):
    StudyRunner(grid).run()
    machine.commands.clear()
    assert StudyRunner(grid).run()
    assert not machine.commands


def test_a_failure_stops_only_what_needs_it(grid: Grid, machine: Machine):
    said: list[str] = []
    machine.broken = {'m_short_cpt_0.4_s17', f'{SWEPT}_lr0.0001'}
    assert not StudyRunner(grid, said.append).run()
    assert 'm_short_cpt_0.4_s18_eval' in machine.commands
    assert f'{SWEPT}_lr0.001' in machine.commands
    for name in ('m_short_cpt_0.4_s17_eval', 'm_short_upcycled_0.4_s18'):
        assert name not in machine.commands
        assert any(
            line.startswith(f'[{name}] not done: it waits for ')
            for line in said
        )
    assert '[m_short_cpt_0.4_s17] not done: exit status 1.' in said
    # Mended, the rest is done.
    machine.broken.clear()
    machine.commands.clear()
    assert StudyRunner(grid).run()
    assert 'm_short' not in machine.commands
    assert 'm_short_upcycled_0.4_s18_eval' in machine.commands


def test_two_jobs_at_a_time(
    grid: Grid,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
):
    # All that the first task is needed for can start after it, and so two
    # meet. Each of a pair waits for the other.
    meet = threading.Barrier(2, timeout=20)
    met: list[str] = []

    def run(_: Any, command: Sequence[str], *args: Any, **kwargs: Any) -> None:
        name = Path(command[2]).stem
        if name in ('m_short_eval', f'{SWEPT}_lr0.0001'):
            meet.wait()
            met.append(name)
        machine(command, *args, **kwargs)

    monkeypatch.setattr(runner.Processes, 'run', run)
    said: list[str] = []
    assert StudyRunner(grid, said.append, jobs=2).run()
    assert sorted(met) == ['m_short_eval', f'{SWEPT}_lr0.0001']
    assert len(machine.commands) == 11
    order = list(machine.commands)
    assert order[0] == 'm_short'
    for late, early in (
        ('m_short_cpt_0.4_s18_eval', 'm_short_cpt_0.4_s18'),
        ('m_short_upcycled_0.4_s18', f'{SWEPT}_lr0.0001'),
        ('m_short_upcycled_0.4_s18', f'{SWEPT}_lr0.001'),
    ):
        assert order.index(late) > order.index(early)
    assert sum('] done in ' in line for line in said) == 11


def test_a_fault_of_the_machine_has_a_second_try(grid: Grid, machine: Machine):
    # streaming's, of a training that starts beside another's end.
    fault = "FileExistsError: [Errno 17] File exists: '/000000_locals'"
    machine.faults = {
        'm_short': fault,
        'm_short_eval': fault,
        'm_short_cpt_0.4_s17': "FileExistsError: [Errno 17] File exists: 'a'",
    }
    said: list[str] = []
    assert not StudyRunner(grid, said.append).run()
    assert f'[1/12 m_short] tries once more, after {fault}' in said
    # No other error of the first is one.
    failed = [line for line in said if '] failed: ' in line]
    assert failed == ['[7/12 m_short_cpt_0.4_s17] failed: exit status 1.']


def test_what_goes_on_elsewhere_is_left_to_it(grid: Grid, machine: Machine):
    write_yamls(grid)
    files = RunFiles(grid.study, 'm_short')
    leave_training(grid, grid['m_short'], n_saved=20, n_logged=25)
    half = files.checkpoints / 'ep0-ba40-rank0.pt'
    half.write_bytes(b'being saved')
    torch.save({}, files.checkpoints / 'ep0-ba20-rank0.pt')
    # As a line of the dry run has it, but for what it does.
    line = next(line for line in dry_run(grid) if 'm_short.yaml' in line)
    assert not half.exists()  # Nothing was at work: it was mended.
    half.write_bytes(b'being saved')
    words = shlex.split(line)
    held = words[:words.index('env')]
    with subprocess.Popen([*held, 'cat'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as job:
        assert job.stdin and job.stdout
        job.stdin.write(b'holds\n')
        job.stdin.flush()
        job.stdout.readline()
        assert '# m_short goes on' in dry_run(grid)
        assert state(Measured(grid), list_tasks(grid)[0]) == 'running'
        said: list[str] = []
        assert not StudyRunner(grid, said.append).run()
        job.stdin.close()
    assert said[0] == '[1/12 m_short] running'
    assert '[m_short] not done: it goes on elsewhere.' in said
    assert not machine.commands and half.exists()
    assert StudyRunner(grid).run()


def test_a_run_that_leaves_nothing_has_failed(grid: Grid, machine: Machine):
    said: list[str] = []
    machine.idle = {'m_short_cpt_0.4_s17'}
    assert not StudyRunner(grid, said.append).run()
    (line, ) = [line for line in said if '] failed: ' in line]
    assert 'without an error and without all that it was to measure' in line
    assert line.endswith('m_short_cpt_0.4_s17.log:\nthe end')


def test_a_run_that_was_interrupted_goes_on(grid: Grid, machine: Machine):
    write_yamls(grid)
    leave_training(grid, grid['m_short'], n_saved=20, n_logged=25)
    said: list[str] = []
    StudyRunner(grid, said.append).run()
    assert said[0].startswith('[1/12 m_short] goes on')
    assert said[2].startswith('[1/12 m_short] done in ')


def test_a_run_that_lacks_its_last_link_is_done(grid: Grid, machine: Machine):
    # Killed after the last checkpoint was saved, at step 100, and before it was
    # linked. Composer would refuse to train for 0 steps.
    write_yamls(grid)
    leave_training(grid, grid['m_short'], n_saved=80, n_logged=100)
    checkpoints = RunFiles(grid.study, 'm_short').checkpoints
    torch.save({}, checkpoints / 'ep0-ba100-rank0.pt')
    said: list[str] = []
    assert StudyRunner(grid, said.append).run()
    assert said[0] == '[1/12 m_short] done'
    assert 'm_short' not in machine.commands


def test_two_runners_exclude_each_other(grid: Grid, machine: Machine):
    folder = grid.study.folder
    folder.mkdir()
    with (folder / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write('process 5 on node1')
        lock.flush()
        match = 'folder=.*another runner works on it .process 5 on node1.'
        with pytest.raises(ConfigError, match=match):
            StudyRunner(grid).run()
    assert not machine.commands
    assert StudyRunner(grid).run()
    assert f'process {os.getpid()} on ' in (folder / '.lock').read_text()


def test_a_changed_study_is_refused(grid: Grid, tmp_path: Path):
    write_yamls(grid)
    leave_training(grid, grid['m_short'])
    changed = yaml.safe_load((tmp_path / 'study.yaml').read_text())['models']
    changed['m']['durations'] = {'short': '200ba'}
    with pytest.raises(ConfigError,
                       match='(?s)m_short has.*-max_duration: 100'):
        StudyRunner(small_grid(tmp_path, models=changed)).run()


def test_a_sweep_with_another_rate_is_refused(
    grid: Grid,
    machine: Machine,
    tmp_path: Path,
):
    # The arm has one of the rates; now another could win.
    StudyRunner(grid).run()
    changed = yaml.safe_load((tmp_path / 'study.yaml').read_text())['models']
    changed['m']['arms']['upcycled']['lr'] = [1e-4, 1e-3, 1e-2]
    match = 'm_short_upcycled_0.4_s18, which the study .*after a sweep that is'
    with pytest.raises(ConfigError, match=match):
        StudyRunner(small_grid(tmp_path, models=changed, seeds=[17, 18])).run()


@pytest.mark.parametrize('script', ['train.py', 'eval.py'])
def test_a_folder_without_the_scripts(grid: Grid, script: str):
    Path(script).unlink()
    with pytest.raises(ConfigError, match=f'there is no {script} in it'):
        StudyRunner(grid).run()
    assert not grid.study.folder.exists()


def test_tasks_are_checked_before_anything_is_run(
    grid: Grid,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.undo()
    monkeypatch.chdir(grid.study.folder.parent)
    with pytest.raises(ConfigError, match='icl_tasks=.*there is no such file'):
        StudyRunner(grid).run()
    assert not machine.commands


def test_dry_run_prints_what_can_start(grid: Grid):
    write_yamls(grid)
    files = RunFiles(grid.study, 'm_short')
    first, *waiting = dry_run(grid)
    # Whatever the environment that it starts in.
    lock = grid.study.folder / 'locks/m_short.lock'
    assert first == (
        f'flock --shared --timeout 5 {lock} env --unset=RUN_NAME --unset=MLFLOW_RUN_ID '
        f'--unset=MLFLOW_EXPERIMENT_ID composer train.py {files.train_yaml}'
    )
    assert len(waiting) == 11 and all(line[0] == '#' for line in waiting)
    assert waiting[0] == '# m_short_eval after m_short'
    assert (
        f'# m_short_upcycled_0.4_s18 after m_short, {SWEPT}_lr0.0001, '
        f'{SWEPT}_lr0.001'
    ) in waiting
    leave_training(grid, grid['m_short'])
    leave_evaluation(grid, grid['m_short'])
    leave_training(grid, grid[f'{SWEPT}_lr0.0001'])
    leave_training(grid, grid[f'{SWEPT}_lr0.001'], loss=9.0)
    lines = list(dry_run(grid))
    can_start = [
        Path(line.split()[-1]).stem for line in lines if line[0] != '#'
    ]
    assert can_start == [
        f'{SWEPT}_lr0.0001_eval',
        'm_short_cpt_0.4_s17',
        'm_short_cpt_0.4_s18',
        'm_short_upcycled_0.4_s18',
    ]
    written = RunFiles(grid.study, 'm_short_upcycled_0.4_s18').train_yaml
    assert yaml.safe_load(written.read_text())['optimizer']['lr'] == 1e-4


def test_dry_run_refuses_another_studys_runs(grid: Grid, tmp_path: Path):
    leave_training(grid, grid['m_short'])
    other = tmp_path / 'other'
    other.mkdir()
    same_name = small_grid(
        other,
        tracking_uri=grid.study.tracking_uri,
        evaluation=None,
    )
    with pytest.raises(ConfigError,
                       match='has a run m_short in the experiment'):
        list(dry_run(same_name))


def test_a_sweep_that_diverged_is_named(grid: Grid, machine: Machine):
    write_yamls(grid)
    for rate in ('0.0001', '0.001'):
        run = grid[f'{SWEPT}_lr{rate}']
        leave_training(grid, run, loss=math.nan)
        RunFiles(grid.study, run.name).log.parent.mkdir(exist_ok=True)
        RunFiles(grid.study, run.name).log.touch()
    said: list[str] = []
    assert not StudyRunner(grid, said.append).run()
    assert 'm_short_upcycled_0.4_s18' not in machine.commands
    why = 'all learning rates of its sweep diverged. Add lower ones'
    assert any(
        line.startswith(f'[m_short_upcycled_0.4_s18] not done: {why}')
        for line in said
    )


def test_a_run_of_another_study_in_mlflow(grid: Grid, machine: Machine):
    # Of the same name, on one tracking server.
    log(grid, 'm_short_cpt_0.4_s18', {LOSS: [3.0]})
    match = "name='small': .*has a run m_short_cpt_0.4_s18 .*name the study oth"
    with pytest.raises(ConfigError, match=match):
        StudyRunner(grid).run()
    assert not machine.commands


@pytest.mark.parametrize('name', ['WORLD_SIZE', 'LOCAL_WORLD_SIZE'])
def test_several_processes_are_for_the_launcher(
    grid: Grid,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
):
    monkeypatch.setenv(name, '2')
    assert StudyRunner(grid).run()
    launcher = str(Path(sys.executable).with_name('composer'))
    assert machine.commands['m_short'][:2] == [launcher, 'train.py']
    assert machine.commands['m_short_eval'][:2] == [launcher, 'eval.py']


def test_an_environment_without_composer(
    grid: Grid,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    monkeypatch.setattr(runner.sys, 'executable', '/nowhere/python')
    with pytest.raises(ConfigError,
                       match="environment='/nowhere': composer is"):
        StudyRunner(grid).run()


def test_time_left(grid: Grid):
    pace = runner._Pace(grid)
    measured = Measured(grid)
    dense, dense_eval = list_tasks(grid)[:2]
    cpt = Task('train', grid['m_short_cpt_0.4_s17'])
    assert (dense.kind, dense_eval.kind) == ('train', 'evaluate')
    # Before anything is known: half of 1e12 FLOPs a second.
    expected = (dense.run.flops + cpt.run.flops) / 5e11
    tasks = (dense, dense_eval, cpt)
    assert pace.left(measured, tasks) == pytest.approx(expected)
    # 10 s to start and 100 s for 100 steps; continued pretraining has 40.
    pace.add(dense, 10.0, 110.0)
    assert pace.left(measured, (cpt, )) == pytest.approx(10 + 40)
    # A mixture is taken to be as fast, until one is done.
    mixture = Task('train', grid['m_short_upcycled_0.4_s18'])
    share = mixture.run.flops / dense.run.flops
    assert pace.left(measured, (mixture, )) == pytest.approx(10 + 100 * share)
    pace.add(mixture, 20.0, 220.0)
    assert pace.left(measured, (mixture, )) == pytest.approx(15 + 200)
    pace.add(dense_eval, 5.0, 8.0)
    assert pace.left(measured, (dense_eval, )) == pytest.approx(8)


def test_what_is_done_takes_no_time(grid: Grid):
    leave_training(grid, grid['m_short'])
    task = Task('train', grid['m_short'])
    assert runner._Pace(grid).left(Measured(grid), (task, )) == 0
