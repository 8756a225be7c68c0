"""What is on disk of a study: a folder for each point, and for each probe.

It is there when its record is (``point.json``, ``quality.json``), which is
written last and at once: whatever ends the harness, no half point is taken for a
whole one.
"""

import fcntl
import json
import os
import re
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Collection, Iterator, Mapping, Optional, Union

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.study.points import Point
from benchmarks.inference.study.probes import Probe

__all__ = ['Item', 'Store']

Item = Union[Point, Probe]

# What records there are.
_KINDS = (Point, Probe)
_ID = re.compile('[0-9a-f]{16}')


class Store:
    """Points and probes of a study's folder.

    Args:
        folder: The study's.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, Mapping[str, Any]] = {}

    def folder_of(self, item: Item) -> Path:
        return self.folder / item.folder / item.id

    def record(self, item: Item) -> Optional[Mapping[str, Any]]:
        """What its record says; None where there is none.

        Raises:
            HarnessError: It can't be read.
        """
        if item.id not in self._read:
            path = self.folder_of(item) / item.file
            if not path.is_file():
                return None
            self._read[item.id] = _load(path, item.format)
        return self._read[item.id]

    def status(self, item: Item) -> Optional[str]:
        """``done``, ``failed``, ``skipped``; None: never tried to the end."""
        record = self.record(item)
        return None if record is None else record['status']

    def write(
        self,
        item: Item,
        status: str,
        reason: Optional[str],
        content: Mapping[str, Any],
    ) -> None:
        """Writes its record.

        Args:
            item: What was measured.
            status: See ``status``.
            reason: Why it is not done.
            content: What else it says.
        """
        record = {
            'format': item.format,
            'id': item.id,
            'config': item.config,
            'status': status,
            'reason': reason,
            **content,
        }
        folder = self.folder_of(item)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f'.{item.file}'
        with temporary.open('w') as file:
            # Not a number would be no JSON.
            json.dump(record, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / item.file)
        self._read[item.id] = record

    def keep_only(self, ids: Collection[str]) -> list[str]:
        """Refuses measurements of another study; removes other remains.

        Args:
            ids: Of all points and probes that the study may have.

        Returns:
            The ids that it removed: those of other settings that are not done.

        Raises:
            HarnessError: A point is done that the study doesn't have: the
                report would take it for one of the study's.
        """
        remains = []
        for path, record in self._all():
            if path.name in ids:
                continue
            if record is not None and record['status'] == 'done':
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
        for path, record in self._all():
            if record is None or record['status'] != 'done':
                continue
            for key, value in machine.items():
                # As JSON, where tuples are lists.
                now = json.loads(json.dumps(value))
                then = record['machine'].get(key)
                if key != 'memory_gib' and then != now:
                    raise HarnessError(
                        f'machine.{key}',
                        now,
                        f'{path.name} was measured with {then!r}: '
                        'figures would not compare.',
                        'go on where the study began, or name another folder '
                        'in it.',
                    )

    def _all(self) -> Iterator[tuple[Path, Optional[Mapping[str, Any]]]]:
        """Folders that were begun; their records, where they were finished."""
        for kind in _KINDS:
            for folder in sorted((self.folder / kind.folder).glob('*')):
                if _ID.fullmatch(folder.name):
                    path = folder / kind.file
                    yield folder, _load(path,
                                        kind.format) if path.is_file() else None

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


def _load(path: Path, expected: str) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text())
        if record['format'] != expected:
            raise ValueError(f"its format is {record['format']!r}")
        return record
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise HarnessError(
            'point',
            str(path),
            f"it can't be read ({error!r}).",
            'remove its folder, and it is measured again.',
        ) from error
