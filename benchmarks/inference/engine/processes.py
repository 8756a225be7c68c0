"""Processes that don't outlive the harness, and what their logs say."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

from benchmarks.inference.errors import HarnessError

__all__ = [
    'cause_in_log',
    'end_group',
    'end_leftover',
    'end_of_log',
    'exit_on_sigterm',
    'record_group',
    'start_group',
]

_TAIL_LINES = 12
_KILL_SECONDS = 10
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1

# vLLM's prefix of a line: `(Worker pid=12) ERROR 11-23 08:46:22 [core.py:1510]`
_PREFIX = re.compile(r'^\([^)]*\) (\w+) [\d-]+ [\d:]+ \[[^]]*\] ?')
# What ends a traceback, or what argparse says.
_CAUSE = re.compile(r'^(?:[\w.]*(?:Error|Exception|Exit)|\S+: error): .+')
# What pydantic says of a setting, below a line that says only whose it is.
_OF_A_SETTING = re.compile(r'^(.+?) \[type=\w+, input_')
# Said where more is said: below, or by another process before.
_REPORT = (
    'validation error',
    'EngineCore encountered an issue',
    'Engine core initialization failed',
    'Worker failed with error',
)


def start_group(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
) -> subprocess.Popen:
    """Starts a command as a process group of its own, writing to ``log``.

    Args:
        command: Program and arguments.
        log: Overwritten: standard output and error.
        environment: All of it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('wb') as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Has Linux send SIGTERM when the harness is killed with SIGKILL."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_group(process: subprocess.Popen, grace_seconds: float) -> None:
    """Asks the first process to end, then kills what is left of the group.

    Args:
        process: Of ``start_group``; it may have ended.
        grace_seconds: How long it may take to end.

    Raises:
        HarnessError: It is there even when killed.
    """
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=grace_seconds)
    finally:
        # Also where a second Ctrl-C ends the wait.
        _kill_group(process.pid)
    try:
        process.wait(timeout=_KILL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _cannot_end(process.pid) from error


def record_group(pid_file: Path, leader: int) -> None:
    """Notes a process group for ``end_leftover``; only on Linux.

    Args:
        pid_file: Overwritten: the leader's process number and start time.
        leader: The number.
    """
    start = _start_time(leader)
    if start is not None:
        pid_file.parent.mkdir(parents=True, exist_ok=True)
        pid_file.write_text(f'{leader} {start}\n')


def end_leftover(pid_file: Path, grace_seconds: float) -> None:
    """Ends the process group that a harness which was killed left.

    Args:
        pid_file: Of ``record_group``; removed. Where its process has ended,
            and the number may be another's, nothing is ended.
        grace_seconds: How long it may take to end.

    Raises:
        HarnessError: It is there even when killed.
    """
    if not pid_file.is_file():
        return
    leader, start = (pid_file.read_text().split() + ['', ''])[:2]
    if leader.isdecimal() and start and _start_time(int(leader)) == start:
        _end_foreign_group(int(leader), start, grace_seconds)
    pid_file.unlink()


def _end_foreign_group(leader: int, start: str, grace_seconds: float) -> None:
    """As ``end_group``, of a process that is not a child of this one."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(leader, signal.SIGTERM)
    _wait_for_end(leader, start, grace_seconds)
    _kill_group(leader)
    if not _wait_for_end(leader, start, _KILL_SECONDS):
        raise _cannot_end(leader)


def _wait_for_end(pid: int, start: str, seconds: float) -> bool:
    """Whether a process of that start time ended in time."""
    until = time.monotonic() + seconds
    while _start_time(pid) == start:
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _start_time(pid: int) -> Optional[str]:
    """When a living process started, as Linux counts; else None."""
    try:
        stat = Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return None
    # The name, which may hold anything, ends at the last bracket; the state is
    # field 3 of the manual page proc_pid_stat(5), the start time field 22.
    fields = stat.rsplit(')', 1)[1].split()
    return None if fields[0] in 'ZX' else fields[19]


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _cannot_end(leader: int) -> HarnessError:
    return HarnessError(
        'server', leader, 'the process is there even when killed.',
        'see what it waits for, such as a device that hangs.'
    )


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the body as an exception, so that what it started ends.

    Leaves a handler that someone else set.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def end_of_log(log: Path) -> str:
    """The last lines of a log, and where it is."""
    lines = _lines(log)[-_TAIL_LINES:]
    return '\n'.join([f'The end of {log}:', *lines])


def cause_in_log(log: Path) -> Optional[str]:
    """The first error that a log names, before those that report an error."""
    reported = None
    for line in _lines(log):
        prefix = _PREFIX.match(line)
        # vLLM also logs errors that it gets over, as warnings.
        if prefix and prefix[1] != 'ERROR':
            continue
        line = _PREFIX.sub('', line).strip()
        if of_a_setting := _OF_A_SETTING.match(line):
            return of_a_setting[1].rstrip('.')
        if _CAUSE.match(line):
            line = line.rstrip('.')
            if not any(text in line for text in _REPORT):
                return line
            reported = reported or line
    return reported


def _lines(log: Path) -> list[str]:
    if not log.is_file():
        return []
    return log.read_text(errors='replace').splitlines()
