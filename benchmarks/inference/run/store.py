"""What is on disk of a study: a folder for each point.

A point is there when its ``point.json`` is, which is written last and at once:
whatever ends the harness, no half point is taken for a whole one.
"""

import fcntl
import json
import os
import re
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping, Optional

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.point_format import POINT_FORMAT
from benchmarks.inference.study.points import Point

__all__ = ['Store']

_ID = re.compile('[0-9a-f]{16}')


class Store:
    """Points of a study's folder.

    Args:
        folder: The study's.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, Mapping[str, Any]] = {}

    def point_folder(self, point: Point) -> Path:
        return self.folder / 'points' / point.id

    def record(self, point: Point) -> Optional[Mapping[str, Any]]:
        """What point.json says; None where there is none.

        Raises:
            HarnessError: It can't be read.
        """
        if point.id not in self._read:
            path = self.point_folder(point) / 'point.json'
            if not path.is_file():
                return None
            self._read[point.id] = _load(path)
        return self._read[point.id]

    def status(self, point: Point) -> Optional[str]:
        """``done``, ``failed``, ``skipped``; None: never tried to the end."""
        record = self.record(point)
        return None if record is None else record['status']

    def write(
        self,
        point: Point,
        status: str,
        reason: Optional[str],
        content: Mapping[str, Any],
    ) -> None:
        """Writes point.json.

        Args:
            point: What was measured.
            status: See ``status``.
            reason: Why it is not done.
            content: What else it says.
        """
        record = {
            'format': POINT_FORMAT,
            'id': point.id,
            'config': point.config,
            'status': status,
            'reason': reason,
            **content,
        }
        folder = self.point_folder(point)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / '.point.json'
        with temporary.open('w') as file:
            # Not a number would be no JSON.
            json.dump(record, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / 'point.json')
        self._read[point.id] = record

    def keep_only(self, ids: Collection[str]) -> list[str]:
        """Refuses measurements of another study; removes other remains.

        Args:
            ids: Of all points that the study may have.

        Returns:
            The ids that it removed: points of other settings that are not done.

        Raises:
            HarnessError: A point is done that the study doesn't have: the
                report would take it for one of the study's.
        """
        remains = []
        for path in sorted((self.folder / 'points').glob('*')):
            if path.name in ids or not _ID.fullmatch(path.name):
                continue
            point = path / 'point.json'
            if point.is_file() and _load(point)['status'] == 'done':
                raise HarnessError(
                    'folder',
                    str(self.folder),
                    f'it has {path.name}, measured with other settings than '
                    'the study has now.',
                    'restore the settings, name another folder in the study, '
                    f'or remove {path}.',
                )
            remains.append(path)
        for path in remains:
            shutil.rmtree(path)
        return [path.name for path in remains]

    def check_machine(self, machine: Mapping[str, Any]) -> None:
        """Refuses to add to what another machine, or engine, measured.

        Args:
            machine: This one.

        Raises:
            HarnessError: A done point's machine differs in more than the
                memory that is free to use.
        """
        for path in sorted((self.folder / 'points').glob('*/point.json')):
            record = _load(path)
            if record['status'] != 'done':
                continue
            for key, value in machine.items():
                # As JSON, where tuples are lists.
                now = json.loads(json.dumps(value))
                then = record['machine'].get(key)
                if key != 'memory_gib' and then != now:
                    raise HarnessError(
                        f'machine.{key}',
                        now,
                        f'{path.parent.name} was measured with {then!r}: '
                        'figures would not compare.',
                        'go on where the study began, or name another folder '
                        'in it.',
                    )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other runners from the folder.

        Raises:
            HarnessError: One is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / '.lock').open('a+') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise HarnessError(
                    'folder',
                    str(self.folder),
                    f'another runner works on it ({lock.read().strip()}).',
                    'wait for it, or name another folder in the study.',
                ) from None
            lock.truncate(0)
            lock.write(f'process {os.getpid()} on {socket.gethostname()}\n')
            lock.flush()
            # The kernel takes the lock back however this process ends.
            yield


def _load(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text())
        if record['format'] != POINT_FORMAT:
            raise ValueError(f"its format is {record['format']!r}")
        return record
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HarnessError(
            'point',
            str(path),
            f"it can't be read ({error!r}).",
            'remove its folder, and it is measured again.',
        ) from error
