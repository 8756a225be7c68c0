"""Runs parts in processes of their own, and keeps what each case gives."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Callable, Optional

from benchmarks.gpu.worker import MARK
from foundry_upcycle.study.process import Processes, RunFailed

__all__ = ['PARTS', 'run_part']

# In order of importance, with the seconds after which no further case starts.
PARTS = {
    'correctness': 150,
    'layer': 120,
    'training': 150,
    'study': 900,
}
# The slowest case that may have started by then; a process that takes longer
# hangs.
_GRACE_SECONDS = 150
Record = dict[str, Any]


class _Part:
    """What is known of a part's cases.

    Args:
        changed: Gets all of them, in order, after each that is done.
    """

    def __init__(self, changed: Callable[[list[Record]], None]):
        self.names: list[str] = []
        self.records: dict[str, Record] = {}
        self.started: Optional[str] = None
        self._changed = changed

    def listen(self, line: str) -> Optional[str]:
        """Takes a line of a worker's output; returns what to show of it."""
        if not line.startswith(MARK):
            return None
        try:
            told = json.loads(line.removeprefix(MARK))
        except ValueError:
            return None  # Other processes write there, too.
        if 'cases' in told:
            self.names = told['cases']
            return None
        if 'started' in told:
            self.started = told['started']
            return None
        self.keep(told)
        return f"  {told['name']}: {_summary(told)}"

    def keep(self, record: Record) -> None:
        self.records[record['name']] = record
        self.started = None
        order = {name: index for index, name in enumerate(self.names)}
        records = self.records.values()
        self._changed(sorted(records, key=lambda each: order[each['name']]))

    @property
    def missing(self) -> list[str]:
        return [name for name in self.names if name not in self.records]


def run_part(
    module: str,
    seconds: float,
    device: str,
    folder: Path,
    changed: Callable[[list[Record]], None],
    say: Callable[[str], None],
) -> None:
    """Runs the cases of a part, whatever becomes of single ones.

    Args:
        module: Its name; see ``worker.main``.
        seconds: After which no further case starts.
        device: ``cuda`` or ``cpu``.
        folder: For the files of its cases and its log.
        changed: Gets what is known of all cases after each.
        say: Shows a line.
    """
    part = _Part(changed)
    end = time.monotonic() + seconds
    name = module.split('.')[-1]
    log = folder / f'{name}.log'
    while True:
        left = max(0.0, end - time.monotonic())
        command = [
            *('timeout', '--kill-after=10', f'{left + _GRACE_SECONDS:.0f}'),
            *(sys.executable, '-m', 'benchmarks.gpu.worker'),
            *(module, device, str(folder / name), f'{left:.0f}'),
            *part.records,
        ]
        n_before = len(part.records)
        reason = 'it ended early'
        try:
            with Processes() as processes:
                processes.run(command, log, part.listen, say)
        except RunFailed as failed:
            reason = _last_line(str(failed))
        if not part.names:
            part.names = [name]  # It died before it said what its cases are.
        died_in = part.started or (
            None if len(part.records) > n_before else part.missing[0]
        )
        if died_in:
            part.keep({'name': died_in, 'error': f'its process died: {reason}'})
            say(f'  {died_in}: {_summary(part.records[died_in])}')
        if not part.missing:
            return


def _summary(record: Record) -> str:
    for key in ('error', 'left_out'):
        if key in record:
            return f"{key.replace('_', ' ')}: {record[key]}"
    return f"{record['seconds']:.0f} s"


def _last_line(text: str) -> str:
    lines = [
        line for line in text.splitlines()
        if line.strip() and not line.startswith(MARK)
    ]
    return ' ... '.join((lines[0].split('.')[0], lines[-1][-300:]))
