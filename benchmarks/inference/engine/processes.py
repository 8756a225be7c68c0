"""Processes that don't outlive the harness, and what their logs say."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

__all__ = [
    'cause_in_log',
    'end_group',
    'end_of_log',
    'exit_on_sigterm',
    'start_group',
]

_TAIL_LINES = 12
_KILL_SECONDS = 10
_PR_SET_PDEATHSIG = 1

# vLLM's prefix of a line: `(Worker pid=12) ERROR 11-23 08:46:22 [core.py:1510]`
_PREFIX = re.compile(r'^\([^)]*\) (\w+) [\d-]+ [\d:]+ \[[^]]*\] ?')
# What ends a traceback, or what argparse says.
_CAUSE = re.compile(r'^(?:[\w.]*(?:Error|Exception|Exit)|\S+: error): .+')
# Said of another process, which has said more.
_REPORT = (
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
    """
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=_KILL_SECONDS)


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
