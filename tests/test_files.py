import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundry_upcycle.files import (
    fix_for,
    lock_folder,
    require_place,
    scratch_folder,
    write_together,
    write_whole,
)


def test_makes_folders_and_replaces(tmp_path: Path):
    path = tmp_path / 'a' / 'b.json'
    write_whole(path, 'first\n')
    write_whole(path, 'ü\n')
    assert path.read_text() == 'ü\n'
    assert os.listdir(path.parent) == ['b.json']


def test_what_was_there_stays_where_writing_fails(tmp_path: Path):
    path = tmp_path / 'a.json'
    write_whole(path, 'first\n')
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, 'half \udc80')
    assert path.read_text() == 'first\n'


def test_nothing_is_left_where_writing_fails(tmp_path: Path):
    with pytest.raises(UnicodeEncodeError):
        write_together(tmp_path / 'new' / 'out', {'a': 'all', 'b': '\udc80'})
    assert os.listdir(tmp_path) == []


def test_all_or_none_are_replaced(tmp_path: Path):
    write_together(tmp_path, {'a': 'first', 'b/c': b'first'})
    (tmp_path / 'd').mkdir()
    with pytest.raises(OSError, match='it is a folder'):
        write_together(tmp_path, {'a': 'second', 'd': 'second'})
    assert (tmp_path / 'a').read_text() == 'first'
    assert (tmp_path / 'b' / 'c').read_bytes() == b'first'
    assert sorted(os.listdir(tmp_path)) == ['a', 'b', 'd']


def fork_writer(path: Path, text: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            for _ in range(50):
                write_whole(path, text)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_processes_that_write_one_file_do_not_mix(tmp_path: Path):
    path = tmp_path / 'a.txt'
    texts = [letter * size for letter, size in zip('abcd', (1, 99999, 5, 7000))]
    children = [fork_writer(path, text) for text in texts]
    write_whole(path, texts[0])
    found = set()
    while any(os.waitpid(child, os.WNOHANG)[0] == 0 for child in children[:1]):
        found.add(path.read_text())
    for child in children[1:]:
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) == 0
    assert {*found, path.read_text()} <= set(texts)
    assert os.listdir(tmp_path) == ['a.txt']


def hold_scratch(parent: Path) -> tuple[int, Path]:
    """A child that has a scratch folder and sleeps; and the folder."""
    is_ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with scratch_folder('test-', parent) as folder:
            (folder / 'content').write_text('half')
            os.write(tell, os.fsencode(folder))
            time.sleep(60)
        os._exit(0)
    os.close(tell)
    return child, Path(os.fsdecode(os.read(is_ready, 4096)))


def test_only_remains_of_killed_processes_are_swept(tmp_path: Path):
    child, folder = hold_scratch(tmp_path)
    others = [
        tmp_path / f'test-other{socket.gethostname()}-1',  # another machine's
        tmp_path / 'test-mine',
        tmp_path / 'elsewhere',
    ]
    for other in others:
        other.mkdir()
    link = tmp_path / f'test-{socket.gethostname()[:64]}-link'
    link.symlink_to(others[-1])
    with scratch_folder('test-', tmp_path) as own:
        assert (folder / 'content').exists() and own != folder
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert folder.exists()
    with scratch_folder('test-', tmp_path) as own:
        assert not folder.exists() and own.exists()
    assert {*tmp_path.iterdir()} == {*others, link}


def test_killed_writers_leave_what_the_next_sweeps(tmp_path: Path):
    path = tmp_path / 'a.json'
    # At each of its steps, the one that replaces the file included.
    code = """if True:
        import os, sys
        from pathlib import Path
        from foundry_upcycle.files import write_whole
        path, left = Path(sys.argv[1]), int(sys.argv[2])
        def hook(event, _):
            global left
            left -= event == 'open' or event.startswith(('os.', 'fcntl.'))
            if not left:
                left = -1
                os.kill(os.getpid(), 9)
        sys.addaudithook(hook)
        write_whole(path, 'new')
        """
    for step in range(1, 30):
        path.write_text('old')
        command = [sys.executable, '-c', code, str(path), str(step)]
        status = subprocess.run(command, check=False).returncode
        assert path.read_text() in ('old', 'new')
        write_whole(path, 'newer')
        assert os.listdir(tmp_path) == ['a.json']
        if not status:
            break
        assert status == -signal.SIGKILL
    assert status == 0 and step > 5


@pytest.mark.parametrize(
    'kind',
    ['fifo', 'socket', 'device', 'link to a fifo', 'standard output'],
)
def test_what_is_no_file_is_not_replaced(tmp_path: Path, kind: str):
    path = tmp_path / 'out'
    if kind == 'fifo':
        os.mkfifo(path)
    elif kind == 'socket':
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == 'device':
        path.symlink_to('/dev/null')
    elif kind == 'link to a fifo':
        os.mkfifo(tmp_path / 'fifo')
        path.symlink_to('fifo')
    else:
        path.symlink_to('/proc/self/fd/1')  # As /dev/stdout is.
    before = path.lstat()
    for check in (require_place, lambda path: write_whole(path, 'text')):
        with pytest.raises(OSError, match='it is neither a file nor a folder'):
            check(path)
    assert os.path.samestat(path.lstat(), before)


@pytest.mark.parametrize('target', ['file', 'folder', 'nowhere'])
def test_a_link_is_replaced_and_what_it_points_to_stays(
    tmp_path: Path,
    target: str,
):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / target)
    if target == 'folder':
        with pytest.raises(OSError, match='it is a folder'):
            write_whole(tmp_path / 'link', 'new')
        return
    write_whole(tmp_path / 'link', 'new')
    assert not (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'link').read_text() == 'new'
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize(
    'name,suffix,problem',
    [
        ('a' * 255, '', None),
        ('a' * 256, '', 'a name of 256 bytes, and 255 are the most'),
        ('ü' * 128, '', 'a name of 256 bytes'),
        ('a' * 247, '.partial', None),
        ('a' * 248, '.partial', 'a name of 256 bytes with .partial, and 255'),
        ('a' * 256 + '/b', '', 'a name of 256 bytes, and'),
        ('new/' * 1200 + 'b', '', 'name too long'),
        ('file/b', '', 'Not a directory'),
        ('file/b/c', '', 'Not a directory'),
    ],
    ids=range(9),
)
def test_names_that_fit(
    tmp_path: Path,
    name: str,
    suffix: str,
    problem: str | None,
):
    (tmp_path / 'file').touch()
    if problem is None:
        require_place(tmp_path / name, suffix)
        write_whole(tmp_path / name, 'text')
        return
    with pytest.raises(OSError, match=problem) as caught:
        require_place(tmp_path / name, suffix)
    is_long = 'name' in problem
    assert ('shorter' in fix_for(caught.value)) == is_long
    assert os.listdir(tmp_path) == ['file']


def test_a_link_to_nowhere_is_not_waited_for(tmp_path: Path):
    (tmp_path / 'link').symlink_to('nowhere')
    with pytest.raises(FileNotFoundError):
        lock_folder(tmp_path / 'link')
