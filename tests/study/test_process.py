"""Processes of a study leave nothing behind."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator, Optional

import pytest
from small_study import write_study
from typer.testing import CliRunner

from foundry_upcycle.cli.app import app
from foundry_upcycle.study import process
from foundry_upcycle.study.process import (
    REDIRECTING,
    Processes,
    Progress,
    RunFailed,
)
from foundry_upcycle.study.runner import StudyRunner


def _run(folder: Path, program: str, shown: Optional[list[str]] = None) -> None:

    def progress(line: str) -> Optional[str]:
        if shown is not None:
            shown.append(line)
        return line.strip()

    with Processes() as processes:
        processes.run(
            [sys.executable, '-c', program],
            folder / 'logs' / 'run.log',
            progress,
            print,
        )


def _alive(pid: int) -> bool:
    stat = Path(f'/proc/{pid}/stat')
    try:
        return stat.read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def _wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not _alive(pid)


def test_output_goes_to_log_and_progress(tmp_path: Path, capsys):
    shown: list[str] = []
    _run(tmp_path, 'print("one"); print("two")', shown)
    assert shown == ['one\n', 'two\n']
    assert (tmp_path / 'logs' / 'run.log').read_text() == 'one\ntwo\n'
    assert 'two' in capsys.readouterr().out


def test_python_of_this_environment_comes_first(tmp_path: Path):
    shown: list[str] = []
    _run(
        tmp_path,
        'import shutil; print(shutil.which("python"))',
        shown,
    )
    assert Path(shown[0].strip()).parent == Path(sys.executable).parent


def test_other_runs_of_mlflow_are_not_logged_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name in REDIRECTING:
        monkeypatch.setenv(name, 'other')
    shown: list[str] = []
    _run(
        tmp_path, f'import os; print(os.environ.keys() & {REDIRECTING})', shown
    )
    assert shown == ['set()\n']


@pytest.mark.parametrize('given,used', [(None, str(4 * 2**30)), ('1', '1')])
def test_large_tensors_keep_their_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: Optional[str],
    used: str,
):
    name = 'MALLOC_MMAP_THRESHOLD_'
    if given is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, given)
    shown: list[str] = []
    _run(tmp_path, f'import os; print(os.environ["{name}"])', shown)
    assert shown == [f'{used}\n']


def test_failure_shows_the_end_of_the_log(tmp_path: Path):
    program = 'import sys; print("the reason"); sys.exit(3)'
    with pytest.raises(
            RunFailed,
            match=r'(?s)exit status 3. The end of .*run.log:\nthe reason',
    ):
        _run(tmp_path, program)


def test_an_error_in_the_caller_ends_the_whole_group(tmp_path: Path):
    # The child starts a grandchild, as Composer's launcher does.
    program = (
        'import subprocess, sys, time\n'
        'sleep = [sys.executable, "-c", "import time; time.sleep(60)"]\n'
        'print(subprocess.Popen(sleep).pid, flush=True)\n'
        'time.sleep(60)\n'
    )
    pids: list[int] = []

    def progress(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Processes() as processes:
        processes.run(
            [sys.executable, '-c', program],
            tmp_path / 'run.log',
            progress,
            print,
        )
    assert _wait_until_gone(pids[0])


def test_sigterm_to_the_caller_ends_the_group(tmp_path: Path):
    program = (
        'import signal, sys\n'
        'from pathlib import Path\n'
        'from foundry_upcycle.study.process import Processes\n'
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n'
        'child = "import os, time; print(os.getpid(), flush=True); '
        'time.sleep(60)"\n'
        'with Processes() as processes:\n'
        '    processes.run([sys.executable, "-c", child], Path("s.log"),\n'
        '        str.strip, lambda line: print(line, flush=True))\n'
    )
    caller = subprocess.Popen(
        [sys.executable, '-c', program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert caller.stdout is not None
    pid = int(caller.stdout.readline().split()[-1])
    os.kill(caller.pid, signal.SIGTERM)
    assert caller.wait(timeout=20) == 143
    caller.stdout.close()
    assert _wait_until_gone(pid)


def test_a_second_signal_does_not_spare_the_group(tmp_path: Path):
    # The child does not heed SIGTERM, as one that hangs.
    program = (
        'import signal, sys\n'
        'from pathlib import Path\n'
        'from foundry_upcycle.study import process\n'
        'process._GRACE_SECONDS = 2\n'
        'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n'
        'child = """\n'
        'import os, pathlib, signal, time\n'
        'def note(*_):\n'
        '    pathlib.Path("asked").touch()\n'
        'signal.signal(signal.SIGTERM, note)\n'
        'print(os.getpid(), flush=True)\n'
        'while True:\n'
        '    time.sleep(60)\n'
        '"""\n'
        'with process.Processes() as processes:\n'
        '    processes.run([sys.executable, "-c", child], Path("s.log"),\n'
        '        str.strip, lambda line: print(line, flush=True))\n'
    )
    with subprocess.Popen(
        [sys.executable, '-c', program],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
    ) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        try:
            os.kill(caller.pid, signal.SIGTERM)
            deadline = time.monotonic() + 10
            while not (tmp_path / 'asked').exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(caller.pid, sent)
            caller.wait(timeout=20)
            assert not _alive(pid)
        finally:
            if _alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_what_runs_in_threads_ends_with_the_context(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    program = (
        'import os, time\n'
        'print(os.getpid(), os.environ["OMP_NUM_THREADS"], flush=True)\n'
        'time.sleep(60)\n'
    )
    said: queue.Queue[str] = queue.Queue()
    with pytest.raises(KeyboardInterrupt):
        with ThreadPoolExecutor(2) as pool, Processes(at_once=2) as processes:
            command = [sys.executable, '-c', program]
            futures = [
                pool.submit(
                    processes.run,
                    command,
                    tmp_path / f'{i}.log',
                    str.strip,
                    said.put,
                ) for i in range(2)
            ]
            pids, threads = zip(*(said.get(timeout=20).split() for _ in '12'))
            raise KeyboardInterrupt
    assert all(_wait_until_gone(int(pid)) for pid in pids)
    assert set(threads) == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    for future in futures:
        with pytest.raises(RunFailed, match='exit status -15'):
            future.result()
    with pytest.raises(RunFailed, match='was not started'):
        processes.run(command, tmp_path / '2.log', str.strip, print)


@pytest.fixture
def handlers() -> Iterator[None]:
    """This process outlives the signals of a test."""
    # Composer, if it is imported, has set others.
    before = {
        signal.SIGINT: signal.signal(
            signal.SIGINT,
            signal.default_int_handler,
        ),
    }
    for each in (signal.SIGTERM, signal.SIGHUP):
        before[each] = signal.signal(each, lambda *_: None)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def test_a_signal_meanwhile_is_not_lost(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handlers: None,
):
    asked: list[int] = []

    def killpg(_: int, sent: int) -> None:
        signal.raise_signal(signal.SIGINT)
        asked.append(sent)

    monkeypatch.setattr(process.os, 'killpg', killpg)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, 'print("done")')
    assert asked == [signal.SIGTERM, signal.SIGKILL]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread(tmp_path: Path):
    shown: list[str] = []
    ended: list[bool] = []

    def run() -> None:
        _run(tmp_path, 'print("one")', shown)
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert (shown, ended) == (['one\n'], [True])


@pytest.mark.parametrize(
    'sent,status',
    # 128 + 15, 128 + 1.
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_signals_to_the_command_pass_its_finally(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handlers: None,
    sent: signal.Signals,
    status: int,
):
    ended: list[bool] = []

    def run(_: StudyRunner) -> bool:
        try:
            signal.raise_signal(sent)
            return True
        finally:
            ended.append(True)

    monkeypatch.setattr(StudyRunner, 'run', run)
    words = ['study', 'run', str(write_study(tmp_path))]
    assert CliRunner().invoke(app, words).exit_code == status
    assert ended
    # As nohup leaves it.
    signal.signal(sent, signal.SIG_IGN)
    assert CliRunner().invoke(app, words).exit_code == 0


def test_progress_reads_composers_log():
    progress = Progress()
    log = (
        '[batch=10/300]:\n'
        '\t Train time/batch: 9\n'
        '\t Train metrics/train/LanguageCrossEntropy: 4.5678\n'
        '\t Train throughput/tokens_per_sec: 12345.6\n'
        '[Eval batch=1/8] Eval on eval/domain data\n'
        '[Eval batch=2/8] Eval on eval/domain data\n'
    )
    shown = [text for text in map(progress, log.splitlines()) if text]
    assert shown == [
        'step 10/300  loss 4.568  12,346 tokens/s',
        'evaluates on eval/domain',
    ]


def test_progress_says_what_is_left():
    seconds = iter([50.0, 70.0, 5050.0])
    progress = Progress(clock=lambda: next(seconds))
    shown = []
    for step in (10, 20, 30):
        progress(f'[batch={step}/1010]:')
        shown.append(progress('Train throughput/tokens_per_sec: 5'))
    # 2 s a step after 20 steps, 250 s a step after 30.
    assert shown == [
        'step 10/1010    5 tokens/s',
        'step 20/1010    5 tokens/s  33 min left',
        'step 30/1010    5 tokens/s  68.1 h left',
    ]
