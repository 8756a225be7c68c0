"""A study's folder has one runner, and its lock lives as long as what that runs."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest
from small_study import small_grid
from typer.testing import CliRunner

from foundry_upcycle.cli.app import app
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study import lock
from foundry_upcycle.study.lock import exclusive, is_held


def _is_free(folder: Path) -> bool:
    try:
        with exclusive(folder):
            return True
    except ConfigError:
        return False


def test_one_at_a_time(tmp_path: Path):
    folder = tmp_path / 'new' / 'study'
    with exclusive(folder):
        match = (
            f"^folder='{folder}': another runner works on it .process "
            f'{os.getpid()} on .*, or what that started before it was killed. '
            'Fix: wait for it, or name another folder and another name'
        )
        with pytest.raises(ConfigError, match=match), exclusive(folder):
            pass
    assert _is_free(folder)


def test_what_a_killed_runner_started_keeps_the_lock(tmp_path: Path):
    program = (
        'import sys\n'
        'from pathlib import Path\n'
        'from foundry_upcycle.study.lock import exclusive\n'
        'from foundry_upcycle.study.process import Processes\n'
        'child = "import os, time; print(os.getpid(), flush=True); '
        'time.sleep(60)"\n'
        'with exclusive(Path()) as lock, Processes() as processes:\n'
        '    processes.run([sys.executable, "-c", child], Path("s.log"),\n'
        '        str.strip, lambda line: print(line, flush=True),\n'
        '        pass_fds=[lock])\n'
    )
    with subprocess.Popen(
        [sys.executable, '-c', program],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
    ) as runner:
        assert runner.stdout is not None
        child = int(runner.stdout.readline())
        try:
            runner.kill()
            runner.wait()
            assert not _is_free(tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not _is_free(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _is_free(tmp_path)


def test_a_file_system_without_locks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(lock.fcntl, 'flock', flock)
    match = "can't lock files .*No locks available.*Fix: name a folder on anoth"
    with pytest.raises(ConfigError, match=match), exclusive(tmp_path):
        pass


def test_who_may_only_read_sees_what_goes_on():
    # Root may write anything, and others may not follow pytest's folder.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, 'run.lock')
        path.touch()
        path.chmod(0o444)
        with _as_another_user(), path.open() as holder:
            with pytest.raises(PermissionError):
                path.open('a')
            assert not is_held(path)
            fcntl.flock(holder, fcntl.LOCK_SH)
            assert is_held(path)


@contextmanager
def _as_another_user() -> Iterator[None]:
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_is_a_file(tmp_path: Path):
    path = tmp_path / 'results'
    path.touch()
    match = f"^folder='{path}': it can't be made"
    with pytest.raises(ConfigError, match=match), exclusive(path):
        pass


@pytest.mark.parametrize('command', [['plan'], ['run', '--dry-run']])
def test_commands_that_write_yamls_take_it(tmp_path: Path, command: list[str]):
    folder = small_grid(tmp_path, evaluation=None).study.folder
    words = ['study', *command, str(tmp_path / 'study.yaml')]
    with exclusive(folder):
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert 'another runner works on it' in result.stderr
    assert not (folder / 'yamls').exists()
    assert CliRunner().invoke(app, words).exit_code == 0
