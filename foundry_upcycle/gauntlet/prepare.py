"""Gathers the files of the Eval Gauntlet's tasks, and checks them."""

import hashlib
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Literal, Mapping, Optional, Sequence

import yaml

from foundry_upcycle.errors import ConfigError, TaskDataError
from foundry_upcycle.files import (
    NO_LOCKS,
    fix_for,
    lock_folder,
    reason_of,
    require_place,
    unlock_folder,
    write_whole,
)
from foundry_upcycle.gauntlet.gauntlets import FOLDER, read_gauntlet
from foundry_upcycle.gauntlet.sources import Source
from foundry_upcycle.gauntlet.tasks import Task, check_data, read_tasks

__all__ = ['GAUNTLETS', 'DataFile', 'prepare']

# Those whose tasks come from LLM Foundry's repository.
GAUNTLETS = ('paper', 'v0.3')

State = Literal['present', 'modified', 'damaged', 'missing']

_DIGEST = re.compile(
    r'(?P<kind>SHA256|GIT) \((?P<path>.+)\) = (?P<digest>[0-9a-f]+)',
)


@dataclass(frozen=True)
class DataFile:
    """A file, as preparing found it.

    Args:
        path: Below the data's folder.
        state: ``present`` as released; ``modified`` where it is another file
            that its task can read; ``damaged`` where its task can't;
            ``missing``.
        is_used: Whether the prepared gauntlets have its task.
        n_records: Of a file that can be read.
        problem: Why it is not ``present``.
    """

    path: str
    state: State
    is_used: bool
    n_records: Optional[int] = None
    problem: str = ''


def prepare(
    source: Source,
    folder: str | os.PathLike[str],
    allow_modified: bool = False,
) -> Iterator[DataFile]:
    """Makes a folder with files of tasks, and YAMLs for the gauntlets on them.

    For each gauntlet there will be ``<name>_tasks.yaml`` and ``<name>.yaml``,
    for ``icl_tasks`` and ``eval_gauntlet``, of the tasks whose files are
    there; the second lists the others as ``left_out``. Files that are there and
    can be used are kept; only the released one replaces another. What an
    earlier attempt left unfinished is gone on with.

    Args:
        source: Where to get files.
        folder: Where to put them.
        allow_modified: Whether a file that its task can read will do, where
            it is not the released one.

    Yields:
        Each file, once it has been dealt with.

    Raises:
        ConfigError: The source can't be reached, the folder can't be written
            or another process prepares it, or no task is left.
    """
    folder = Path(folder).resolve()
    digests = _digests()
    tasks: dict[str, list[Task]] = {path: [] for path in digests}
    for name in GAUNTLETS:
        for task in read_tasks(FOLDER / f'{name}_tasks.yaml'):
            tasks[task.dataset_uri].append(task)
    used: set[str] = set()
    n_found = 0
    with _alone_in(folder):
        for path, digest in digests.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            file = _prepare_file(
                source,
                path,
                digest,
                folder / path,
                tasks[path],
                allow_modified,
            )
            if file.is_used:
                used.add(path)
            n_found += file.state != 'missing'
            yield file
        if used:
            for name in GAUNTLETS:
                _write_gauntlet(name, folder, used)
    if not used:
        raise ConfigError(
            '--to',
            str(folder),
            f'of {n_found} files that were found, none can be used.',
            'give --from a clone of LLM Foundry, its folder '
            'scripts/eval/local_data, or a URL; or give --allow-modified for '
            'files that are not those released.',
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes from a folder, in which files have one name."""
    lock = None
    try:
        require_place(folder / 'file')
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_folder(folder)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    except BlockingIOError as error:
        raise ConfigError(
            '--to',
            str(folder),
            'another process prepares it.',
            'wait until that is done, or name another folder.',
        ) from error
    except OSError as error:
        raise ConfigError(
            '--to',
            str(folder),
            f"it can't be written ({reason_of(error)}).",
            fix_for(error),
        ) from error
    finally:
        if lock is not None:
            unlock_folder(folder, lock)


def _digests() -> dict[str, tuple[str, str]]:
    """Path -> kind and digest of the released file."""
    lines = (FOLDER / 'data_digests.txt').read_text().splitlines()
    found = filter(None, map(_DIGEST.fullmatch, lines))
    return {match['path']: (match['kind'], match['digest']) for match in found}


def _prepare_file(
    source: Source,
    path: str,
    digest: tuple[str, str],
    target: Path,
    tasks: Sequence[Task],
    allow_modified: bool,
) -> DataFile:
    partial = target.with_name(f'{target.name}.partial')
    for place in (target, partial):
        require_place(place)
    if target.is_file() and _is_released(target, digest):
        return DataFile(path, 'present', True, _check(tasks, target))
    goes_on = partial.exists()
    is_there = source.fetch(path, partial)
    if is_there and goes_on and not _is_released(partial, digest):
        # What was there of it may have been of another source.
        partial.unlink()
        is_there = source.fetch(path, partial)
    if is_there and _is_released(partial, digest):
        partial.replace(target)
        return DataFile(path, 'present', True, _check(tasks, target))
    if not is_there and not target.is_file():
        return DataFile(path, 'missing', False, problem='not in the source')
    # What is there already, if it can be used, goes before another that is not
    # the released one.
    problems = []
    for other in filter(Path.is_file, (target, partial)):
        try:
            n_records = _check(tasks, other)
        except (ConfigError, TaskDataError) as error:
            place = str(target) if other is target else f'{path} of the source'
            problems.append(str(error).replace(str(other), place))
            continue
        if allow_modified:
            other.replace(target)
        partial.unlink(missing_ok=True)
        problem = 'not the released file'
        return DataFile(path, 'modified', allow_modified, n_records, problem)
    partial.unlink(missing_ok=True)
    return DataFile(path, 'damaged', False, problem=' '.join(problems))


def _is_released(file: Path, digest: tuple[str, str]) -> bool:
    kind, expected = digest
    content = file.read_bytes()
    if kind == 'GIT':
        header = b'blob %d\0' % len(content)
        return hashlib.sha1(header + content).hexdigest() == expected
    return hashlib.sha256(content).hexdigest() == expected


def _check(tasks: Sequence[Task], file: Path) -> int:
    return max(check_data(task, file) for task in tasks)


def _write_gauntlet(name: str, folder: Path, used: set[str]) -> None:
    tasks = read_tasks(FOLDER / f'{name}_tasks.yaml')
    kept = [task for task in tasks if task.dataset_uri in used]
    _write_yaml(
        folder / f'{name}_tasks.yaml',
        {
            'icl_tasks': [{
                **task.settings,
                'dataset_uri':
                str(folder / task.dataset_uri),
            } for task in kept],
        },
    )
    there = {benchmark for task in kept for benchmark in task.benchmarks}
    gauntlet = read_gauntlet(name).restricted(there)
    _write_yaml(folder / f'{name}.yaml', gauntlet.to_yaml())


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(content, sort_keys=False)
    header = '# Written by `foundry-upcycle gauntlet prepare`.\n'
    write_whole(path, header + text)
