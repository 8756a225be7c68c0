"""Runs commands so that nothing of them outlives their caller."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Collection, Iterator, Optional, Sequence

__all__ = [
    'REDIRECTING',
    'Processes',
    'Progress',
    'RunFailed',
    'duration_text',
    'end_of_log',
]

# With these in its environment Composer logs to another MLflow run than the YAML
# says, where what it measured would not be found.
REDIRECTING = ('RUN_NAME', 'MLFLOW_RUN_ID', 'MLFLOW_EXPERIMENT_ID')

_TAIL_LINES = 30
# Composer's own launcher takes a moment to end its processes.
_GRACE_SECONDS = 10


class RunFailed(RuntimeError):
    """A run ended without what it was to do. Says how its log ends."""


class Processes:
    """Commands, each in a process group of its own, several at a time.

    As a context it ends, when it is left, every process that still runs,
    whatever it is left for: an error, Ctrl-C, SIGTERM turned into SystemExit.
    While that goes on, further signals wait.

    Args:
        at_once: How many run at the same time. They share the cores, unless
            OMP_NUM_THREADS says how many threads each has.
    """

    def __init__(self, at_once: int = 1):
        self._at_once = at_once
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._is_over = False

    def __enter__(self) -> 'Processes':
        return self

    def __exit__(self, *_: Any) -> None:
        with self._guard:
            self._is_over = True
            left = list(self._running)
        with _signals_wait():
            _end_groups(left)

    def run(
        self,
        command: Sequence[str],
        log_path: Path,
        progress: Callable[[str], Optional[str]],
        say: Callable[[str], None],
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Runs a command to its end; in whichever thread.

        Args:
            command: Program and arguments.
            log_path: Its output, appended.
            progress: Gets each line of output, returns what to show of it.
            say: Shows it.
            pass_fds: Descriptors that the command inherits.

        Raises:
            RunFailed: The exit status is not 0, and the message has the last
                lines of the output; or the context was left before.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open('a') as log:
            process = self._start(command, pass_fds)
            assert process.stdout is not None  # for pyright: it is a pipe
            try:
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    shown = progress(line)
                    if shown:
                        say(shown)
                status = process.wait()
            finally:
                with _signals_wait():
                    with self._guard:
                        self._running.discard(process)
                    _end_groups([process])
        if status:
            raise RunFailed(f'exit status {status}. {end_of_log(log_path)}')

    def _start(
        self,
        command: Sequence[str],
        pass_fds: Sequence[int],
    ) -> subprocess.Popen:
        with self._guard:
            if self._is_over:
                raise RunFailed('it was not started: the runner ends.')
            process = subprocess.Popen(
                command,
                env=_environment(self._at_once),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
            self._running.add(process)
        return process


def end_of_log(path: Path) -> str:
    """The last lines of a log, and where it is."""
    lines = path.read_text(errors='replace').splitlines()[-_TAIL_LINES:]
    return '\n'.join([f'The end of {path}:', *lines])


def _environment(at_once: int) -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in REDIRECTING
    }
    # The launcher starts whatever `python` comes first.
    bin_folder = str(Path(sys.executable).parent)
    environment['PATH'] = os.pathsep.join([bin_folder, os.environ['PATH']])
    # What a process says is read at once, as of Composer's launcher.
    environment['PYTHONUNBUFFERED'] = '1'
    # OpenMP's threads otherwise spin while they wait for each other: with any
    # other busy process on the machine, training slows down tenfold.
    environment.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # glibc otherwise returns the memory of every large tensor to the system and
    # page-faults it in again for the next: measured, a training step of the
    # quickstart's models took 20 to 35 % longer.
    environment.setdefault('MALLOC_MMAP_THRESHOLD_', str(4 * 2**30))
    environment.setdefault('MALLOC_TRIM_THRESHOLD_', str(8 * 2**30))
    if at_once > 1:
        n_threads = max(1, len(os.sched_getaffinity(0)) // at_once)
        environment.setdefault('OMP_NUM_THREADS', str(n_threads))
    return environment


def _end_groups(processes: Collection[subprocess.Popen]) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        processes = [each for each in processes if _signalled(each, sent)]
        for process in processes:
            try:
                process.wait(timeout=_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def _signalled(process: subprocess.Popen, sent: signal.Signals) -> bool:
    """Sends a signal to a group; False if none of it is left."""
    try:
        os.killpg(process.pid, sent)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Holds back what would end this process, and sends it again at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Signals go to the main thread, and only there are set.
        return
    received: list[int] = []
    before = {
        each: signal.signal(each, lambda number, _: received.append(number))
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if received:
            signal.raise_signal(received[0])


class Progress:
    """Turns Composer's console log into one line a report.

    ``passing_fault`` is an error that a second try does not meet again.

    Args:
        clock: Seconds, from whenever.
    """

    _BATCH = re.compile(r'\[batch=(\d+)/(\d+)\]:$')
    _LOSS = re.compile(r'Train metrics/train/LanguageCrossEntropy: ([\d.]+)')
    _SPEED = re.compile(r'Train throughput/tokens_per_sec: ([\d.]+)')
    _EVAL = re.compile(r'\[Eval batch=1/\d+\] Eval on (\S+) data')
    # Two processes of a machine took one name, or one port, at a time.
    _PASSING = re.compile(
        r"File(Exists|NotFound)Error: .*'/\d{6}_\w+'|EADDRINUSE",
    )

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._first: Optional[tuple[int, float]] = None
        self._left = ''
        self.batch = ''
        self.loss = ''
        self.passing_fault = ''

    def __call__(self, line: str) -> Optional[str]:
        """Returns what to show after one more line, if anything."""
        line = line.strip()
        if match := self._BATCH.search(line):
            self.batch = f'step {match[1]}/{match[2]}'
            self._estimate(int(match[1]), int(match[2]))
        elif match := self._LOSS.match(line):
            self.loss = f'loss {float(match[1]):.3f}'
        elif match := self._SPEED.match(line):
            speed = f'{float(match[1]):,.0f} tokens/s'
            return f'{self.batch}  {self.loss}  {speed}{self._left}'
        elif match := self._EVAL.match(line):
            return f'evaluates on {match[1]}'
        elif self._PASSING.search(line):
            self.passing_fault = line
        return None

    def _estimate(self, step: int, n_steps: int) -> None:
        """From the steps since the first that was shown."""
        now = self._clock()
        first_step, since = self._first = self._first or (step, now)
        if step > first_step:
            seconds = (now - since) / (step - first_step) * (n_steps - step)
            self._left = f'  {duration_text(seconds)} left'


def duration_text(seconds: float) -> str:
    """Seconds, as one reads them."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    if seconds < 6000:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h'
