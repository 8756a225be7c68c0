"""Runs the stages of a study: once each, as processes that leave no orphans."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Optional, Sequence

__all__ = [
    'StageError',
    'TrainingProgress',
    'composer_command',
    'run_process',
    'run_stage',
]

_TAIL_LINES = 30
# Composer's own launcher takes a moment to end its processes.
_GRACE_SECONDS = 10


class StageError(RuntimeError):
    """A stage failed, or was finished earlier with other settings."""


def run_stage(
    folder: Path,
    name: str,
    settings: Sequence[str],
    action: Callable[[], None],
) -> float:
    """Runs a stage, unless it has finished before.

    A finished stage leaves the marker ``stages/<name>.json`` in the folder.

    Args:
        folder: Folder of the whole run.
        name: The stage.
        settings: What the stage's outcome depends on.
        action: Does the work; may find an earlier attempt's and go on with it.

    Returns:
        Seconds that the attempt which finished the stage took.

    Raises:
        StageError: The stage has finished with other settings.
    """
    marker = folder / 'stages' / f'{name}.json'
    if marker.exists():
        finished = json.loads(marker.read_text())
        if finished['settings'] != list(settings):
            raise StageError(
                f'{marker}: {name} has finished with ' +
                f"{' '.join(finished['settings'])}, now it is to run with " +
                f"{' '.join(settings)}. Remove {folder}, or name another " +
                'folder.',
            )
        _say(name, f"finished before, in {finished['seconds']:.0f} s")
        return finished['seconds']
    _say(name, 'starts')
    started = time.monotonic()
    action()
    seconds = time.monotonic() - started
    marker.parent.mkdir(parents=True, exist_ok=True)
    unfinished = marker.with_suffix('.unfinished')
    unfinished.write_text(
        json.dumps({
            'settings': list(settings),
            'seconds': seconds
        }),
    )
    unfinished.rename(marker)
    _say(name, f'finished in {seconds:.0f} s')
    return seconds


def composer_command(
    script: Path,
    yaml: Path,
    overrides: Sequence[str],
) -> list[str]:
    """The command that trains or evaluates in one process of this environment.

    Args:
        script: Foundry's ``train.py`` or ``eval.py``.
        yaml: The YAML to run.
        overrides: ``key=value`` settings that replace the YAML's.
    """
    launcher = Path(sys.executable).with_name('composer')
    return [str(launcher), '-n', '1', str(script), str(yaml), *overrides]


def run_process(
    name: str,
    command: Sequence[str],
    *,
    cwd: Path,
    log_path: Path,
    progress: Callable[[str], Optional[str]],
) -> None:
    """Runs a command in a process group of its own, to the end of either.

    Whatever ends the caller's wait (an error, Ctrl-C, SIGTERM turned into
    SystemExit) ends every process of the group.

    Args:
        name: The stage, for messages.
        command: Program and arguments.
        cwd: Where to run it.
        log_path: Its output, appended.
        progress: Gets each line of output; what it returns is shown.

    Raises:
        StageError: The command's exit status is not 0. The message ends with
            the last lines of its output.
    """
    environment = dict(os.environ)
    # The launcher starts whatever `python` comes first.
    bin_folder = str(Path(sys.executable).parent)
    environment['PATH'] = os.pathsep.join([bin_folder, os.environ['PATH']])
    # OpenMP's threads otherwise spin while they wait for each other: with any
    # other busy process on the machine, training slows down tenfold.
    environment.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # glibc otherwise returns the memory of every large tensor to the system and
    # page-faults it in again for the next: measured, a training step of the
    # quickstart's models took 20 to 35 % longer.
    environment.setdefault('MALLOC_MMAP_THRESHOLD_', str(4 * 2**30))
    environment.setdefault('MALLOC_TRIM_THRESHOLD_', str(8 * 2**30))
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open('a') as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,
        )
        assert process.stdout is not None  # for pyright: it is a pipe
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                shown = progress(line)
                if shown:
                    _say(name, shown)
            status = process.wait()
        finally:
            _end_group(process)
    if status:
        tail = log_path.read_text(errors='replace').splitlines()[-_TAIL_LINES:]
        raise StageError(
            '\n'.join([
                *tail,
                f'{name}: exit status {status}. The lines above are the end ' +
                f'of {log_path}. Run the same command again to go on from ' +
                'the last checkpoint.',
            ]),
        )


def _end_group(process: subprocess.Popen) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


class TrainingProgress:
    """Turns Composer's console log into one line a report."""

    _BATCH = re.compile(r'\[batch=(\d+)/(\d+)\]:$')
    _LOSS = re.compile(r'Train metrics/train/LanguageCrossEntropy: ([\d.]+)')
    _SPEED = re.compile(r'Train throughput/tokens_per_sec: ([\d.]+)')
    _EVAL = re.compile(r'\[Eval batch=1/\d+\] Eval on (\S+) data')

    def __init__(self):
        self.batch = ''
        self.loss = ''

    def __call__(self, line: str) -> Optional[str]:
        """Returns what to show after one more line, if anything."""
        line = line.strip()
        if match := self._BATCH.search(line):
            self.batch = f'step {match[1]}/{match[2]}'
        elif match := self._LOSS.match(line):
            self.loss = f'loss {float(match[1]):.3f}'
        elif match := self._SPEED.match(line):
            return f'{self.batch}  {self.loss}  {float(match[1]):,.0f} tokens/s'
        elif match := self._EVAL.match(line):
            return f'evaluates on {match[1]}'
        return None


def _say(name: str, message: str) -> None:
    print(f'[{name}] {message}', flush=True)
