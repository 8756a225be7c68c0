import ctypes
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from foundry_upcycle.checkpoints.readers.monolithic import MonolithicReader
from foundry_upcycle.checkpoints.writers.output import (
    check_free_space,
    new_output,
    stored_tensors,
    stream_tensor,
)
from foundry_upcycle.errors import CheckpointError


def fork(work: Callable[[], Any]) -> int:
    """Runs ``work`` in a child; it exits with 1 if that raises."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def join(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def put(path: Path, kind: str, text: str) -> None:
    """Writes ``text`` as a file, or as a folder of two."""
    if kind == 'file':
        path.write_text(text)
        return
    path.mkdir()
    for name in ('a', 'b'):
        sys.audit('test_output.put')
        (path / name).write_text(text)


def found(path: Path) -> str | None:
    """What ``put`` wrote, if it is complete."""
    if path.is_file():
        return path.read_text()
    if path.is_dir() and sorted(os.listdir(path)) == ['a', 'b']:
        texts = {(path / name).read_text() for name in ('a', 'b')}
        return texts.pop() if len(texts) == 1 else None
    return None


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_output_appears_when_it_is_complete(kind: str, tmp_path):
    target = tmp_path / 'new' / 'parents' / 'out'
    with new_output(target) as path:
        put(path, kind, 'new')
        assert not target.exists()
        assert path.stat().st_dev == tmp_path.stat().st_dev
    assert found(target) == 'new'
    assert os.listdir(target.parent) == ['out']


@pytest.mark.parametrize('old', [None, 'file', 'folder'])
@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_an_error_leaves_what_was_there(kind: str, old: str | None, tmp_path):
    target = tmp_path / 'out'
    if old:
        put(target, old, 'old')
    with pytest.raises(ZeroDivisionError):
        with new_output(target, overwrite=True) as path:
            put(path, kind, 'new')
            raise ZeroDivisionError
    assert found(target) == ('old' if old else None)
    assert os.listdir(tmp_path) == (['out'] if old else [])


@pytest.mark.parametrize('old', ['file', 'folder', 'dangling link'])
def test_existing_output_is_refused_before_anything_is_written(old, tmp_path):
    target = tmp_path / 'out'
    if old == 'dangling link':
        target.symlink_to('nowhere')
    else:
        put(target, old, 'old')
    before = tmp_path.stat().st_mtime_ns
    with pytest.raises(
            CheckpointError,
            match='out: it exists. Fix: .* pass --overwrite',
    ):
        with new_output(target):
            raise AssertionError
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.parametrize('old', ['file', 'folder', 'link'])
@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_overwrite(kind: str, old: str, tmp_path):
    target = tmp_path / 'out'
    elsewhere = tmp_path / 'elsewhere'
    put(elsewhere, 'folder', 'kept')
    if old == 'link':
        target.symlink_to(elsewhere)
    else:
        put(target, old, 'old')
    with new_output(target, overwrite=True) as path:
        put(path, kind, 'new')
        assert found(target) == ('kept' if old == 'link' else 'old')
    assert found(target) == 'new'
    assert not target.is_symlink()
    assert found(elsewhere) == 'kept'
    assert sorted(os.listdir(tmp_path)) == ['elsewhere', 'out']


def kill_at(step: int) -> None:
    """Makes this process kill itself before its nth step on the disk."""
    steps = 0

    def hook(event: str, _: Any) -> None:
        nonlocal steps
        if event in ('open', 'fcntl.flock') or event.startswith(
            ('os.', 'shutil.', 'test_output.'), ):
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.parametrize('old', [None, 'file', 'folder'])
@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_killed_at_any_step(kind: str, old: str | None, tmp_path):
    """Nothing complete is lost, and the next run cleans up and succeeds."""
    states = set()
    for step in range(1, 100):
        target = tmp_path / str(step) / 'out'
        partial = target.with_name('out.partial')
        target.parent.mkdir()
        if old:
            put(target, old, 'old')

        def write(step: int = step, target: Path = target) -> None:
            kill_at(step)
            with new_output(target, overwrite=True) as path:
                put(path, kind, 'new')

        code = join(fork(write))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        state = found(target)
        if state is None and old:
            # Between the two renames: both are complete.
            assert not target.exists()
            assert found(partial / 'replaced') == 'old'
            assert found(partial / 'new') == 'new'
        states.add(state)
        assert set(os.listdir(target.parent)) <= {'out', 'out.partial'}

        if state or old:
            with pytest.raises(CheckpointError, match='it exists'):
                with new_output(target):
                    raise AssertionError
            assert found(target) == (state or 'old')
        with new_output(target, overwrite=True) as path:
            put(path, kind, 'newer')
        assert found(target) == 'newer'
        assert os.listdir(target.parent) == ['out']
    assert code == 0 and step > 8
    # Without an old one the target may be missing until the last rename.
    assert {'new', 'old' if old else None} <= states


def test_two_processes_exclude_each_other(tmp_path):
    target = tmp_path / 'out'
    is_writing, tell = os.pipe()

    def write_slowly() -> None:
        with new_output(target) as path:
            put(path, 'folder', 'new')
            os.write(tell, b'.')
            time.sleep(60)

    child = fork(write_slowly)
    os.read(is_writing, 1)
    with pytest.raises(
            CheckpointError,
            match='out: another process is writing it. Fix: wait',
    ):
        with new_output(target, overwrite=True):
            raise AssertionError
    assert found(tmp_path / 'out.partial' / 'new') == 'new'
    # Another name in the same folder is free.
    with new_output(tmp_path / 'other') as path:
        put(path, 'file', 'new')
    os.kill(child, signal.SIGKILL)
    assert join(child) == -signal.SIGKILL
    with new_output(target) as path:
        assert not path.exists()
        put(path, 'file', 'newer')
    assert found(target) == 'newer'
    assert sorted(os.listdir(tmp_path)) == ['other', 'out']


def test_many_processes_take_turns(tmp_path):
    target = tmp_path / 'out'

    def write() -> None:
        n_written = 0
        while n_written < 20:
            try:
                with new_output(target, overwrite=True) as path:
                    assert not path.exists()
                    put(path, 'folder', str(os.getpid()))
                    n_written += 1
            except CheckpointError as error:
                assert 'another process' in str(error)

    children = [fork(write) for _ in range(4)]
    assert [join(child) for child in children] == [0] * 4
    assert found(target)
    assert os.listdir(tmp_path) == ['out']


def test_folder_without_permission(tmp_path):

    def write() -> None:
        if os.getuid() == 0:  # Root may write anywhere.
            os.seteuid(65534)
        with pytest.raises(
                CheckpointError,
                match='out: it could not be written .*denied.*Fix: choose an',
        ):
            with new_output(tmp_path / 'out'):
                raise AssertionError

    tmp_path.chmod(0o555)
    assert join(fork(write)) == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('below', ['file/out', 'file/folder/out'])
def test_parent_is_a_file(below: str, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match='could not be .*Not a directory'):
        with new_output(tmp_path / below):
            raise AssertionError


def test_folder_that_takes_no_files():
    with pytest.raises(CheckpointError, match='out: it could not be written'):
        with new_output('/proc/out'):
            raise AssertionError


def fill_up(folder: Path, reason: str) -> None:
    with pytest.raises(
            CheckpointError,
            match=f'out: it could not be written .*{reason}.*Fix: free space',
    ):
        with new_output(folder / 'out') as path:
            path.write_bytes(bytes(4 * 2**20))
    assert os.listdir(folder) == []


def test_limit_on_file_sizes(tmp_path):

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        fill_up(tmp_path, 'File too large')

    assert join(fork(write)) == 0


def mount_small_disk(folder: Path) -> bool:
    """Mounts one of 1 MiB, which only this process sees."""
    libc = ctypes.CDLL(None)
    new_mounts, private = 0x20000, 1 << 18 | 1 << 14
    return (
        libc.unshare(new_mounts) == 0
        and libc.mount(b'none', b'/', None, private, None) == 0 and
        libc.mount(b'tmpfs', os.fsencode(folder), b'tmpfs', 0, b'size=1m') == 0
    )


def test_full_disk(tmp_path):

    def write() -> None:
        if not mount_small_disk(tmp_path):
            os._exit(77)
        fill_up(tmp_path, 'No space left')
        check_free_space(tmp_path / 'new' / 'out', 2**19)
        with pytest.raises(
                CheckpointError,
                match='0.02 GB are to be .* 0.00 GB left. Fix: free space',
        ):
            check_free_space(tmp_path / 'new' / 'out', 2**24)

    code = join(fork(write))
    if code == 77:
        pytest.skip('mounting is not permitted here')
    assert code == 0


@pytest.mark.parametrize('is_folder', [False, True])
def test_a_mount_point_is_refused_before_anything_is_written(
    tmp_path: Path,
    is_folder: bool,
):
    target, elsewhere = tmp_path / 'my out', tmp_path / 'elsewhere'
    for path in (target, elsewhere):
        path.mkdir() if is_folder else path.touch()

    def write() -> None:
        # One of the same disk is not told by its device.
        if not mount_here(elsewhere, target):
            os._exit(77)
        with pytest.raises(
                CheckpointError,
                match='my out: it could not be .*it is a mount point.. Fix: ',
        ):
            with new_output(target, overwrite=True):
                raise AssertionError
        assert sorted(os.listdir(tmp_path)) == ['elsewhere', 'my out']
        with new_output(tmp_path / 'other') as path:
            put(path, 'file', 'new')

    code = join(fork(write))
    if code == 77:
        pytest.skip('mounting is not permitted here')
    assert code == 0


def mount_here(source: Path, target: Path) -> bool:
    """Shows a file or folder at another place, to this process only."""
    libc = ctypes.CDLL(None)
    new_mounts, private, bind = 0x20000, 1 << 18 | 1 << 14, 1 << 12
    source_target = os.fsencode(source), os.fsencode(target)
    return (
        libc.unshare(new_mounts) == 0
        and libc.mount(b'none', b'/', None, private, None) == 0
        and libc.mount(*source_target, None, bind, None) == 0
    )


@pytest.mark.parametrize(
    'name,problem',
    [
        ('a' * 248, 'a name of 256 bytes with .partial.*Fix: choose a shorter'),
        ('fifo', 'it is neither a file nor a folder.. Fix: choose another'),
    ],
)
def test_what_has_no_place_is_refused_before_anything_is_written(
    tmp_path: Path,
    name: str,
    problem: str,
):
    os.mkfifo(tmp_path / 'fifo')
    with pytest.raises(CheckpointError, match=problem):
        with new_output(tmp_path / name, overwrite=True):
            raise AssertionError
    assert os.listdir(tmp_path) == ['fifo']


@pytest.mark.parametrize('old', [None, 'file', 'folder'])
@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_goes_beside_is_replaced_with_the_output(kind, old, tmp_path):
    target, beside = tmp_path / 'out', tmp_path / 'out.json'
    if old:
        put(target, old, 'old')
        beside.write_text('old')
    with pytest.raises(ZeroDivisionError):
        with new_output(target, True, beside) as path:
            put(path, kind, 'new')
            path.with_name('beside').write_text('new')
            raise ZeroDivisionError
    assert found(target) == found(beside) == ('old' if old else None)
    with new_output(target, True, beside) as path:
        put(path, kind, 'new')
        path.with_name('beside').write_text('new')
    assert found(target) == found(beside) == 'new'
    with new_output(target, True, beside) as path:
        put(path, kind, 'without')
    assert found(target) == 'without'
    assert os.listdir(tmp_path) == ['out']


def test_free_space_is_that_of_the_disk(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_free_space(tmp_path / 'new' / 'out', free // 2)
    with pytest.raises(CheckpointError, match='GB left'):
        check_free_space(tmp_path / 'new' / 'out', free * 2)


@pytest.fixture
def source(tmp_path) -> MonolithicReader:
    tensors = {'w': torch.arange(12.0).view(4, 3), 'i': torch.arange(4)}
    torch.save({'state': {'model': tensors}}, tmp_path / 'source.pt')
    return MonolithicReader(str(tmp_path / 'source.pt'))


def test_dtype_is_that_of_floating_point_tensors(source):
    assert stored_tensors(source, None) == source.tensors
    stored = stored_tensors(source, torch.bfloat16)
    assert stored['w'] == ((4, 3), torch.bfloat16)
    assert stored['i'] == ((4, ), torch.int64)


def test_blocks_are_written_as_they_come(source, monkeypatch):
    whole = source.read('w', 0, 0, 4)
    blocks = [whole[:1], torch.empty(0, 3), whole.t().contiguous().t()[1:]]
    monkeypatch.setattr(source, 'rows', lambda *_: iter(blocks))
    written, sizes = bytearray(), []
    stored = stored_tensors(source, torch.bfloat16)['w']
    stream_tensor(source, 'w', stored, written.extend, sizes.append)
    assert sizes == [6, 0, 18]
    result = torch.frombuffer(written, dtype=torch.bfloat16).view(4, 3)
    assert torch.equal(result, whole.bfloat16())


@pytest.mark.parametrize(
    'shapes,message',
    [
        ([(3, 3)], r'w of shape \(4, 3\) was read as 3 rows\. Fix: report'),
        ([], 'was read as 0 rows'),
        ([(4, 3), (1, 3)], r'as 5 rows, the last of shape \(1, 3\)'),
        ([(4, 2)], r'as 4 rows, the last of shape \(4, 2\)'),
    ],
)
def test_wrong_rows_are_an_error(shapes, message, source, monkeypatch):
    blocks = [torch.zeros(shape) for shape in shapes]
    monkeypatch.setattr(source, 'rows', lambda *_: iter(blocks))
    written = bytearray()
    with pytest.raises(CheckpointError, match=message):
        stream_tensor(
            source,
            'w',
            source.tensors['w'],
            written.extend,
            lambda _: None,
        )
    assert len(written) <= source.tensors['w'].n_bytes
