"""Task files are gathered from a folder or a web server, and checked."""

import functools
import hashlib
import json
import os
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Iterator

import pytest
import yaml
from tiny_tasks import gauntlet_data

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet import gauntlets, prepare, sources
from foundry_upcycle.gauntlet.gauntlets import read_gauntlet
from foundry_upcycle.gauntlet.sources import open_source
from foundry_upcycle.gauntlet.tasks import Task, read_tasks

COPA = 'commonsense_reasoning/copa.jsonl'
MMLU = 'world_knowledge/mmlu.jsonl'


def all_tasks() -> list[Task]:
    return [
        task for name in prepare.GAUNTLETS
        for task in read_tasks(gauntlets.FOLDER / f'{name}_tasks.yaml')
    ]


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small files, recorded as if they were those released."""
    data = gauntlet_data(tmp_path / 'data', all_tasks())
    lines = []
    for file in sorted(data.rglob('*.jsonl')):
        path, content = file.relative_to(data).as_posix(), file.read_bytes()
        is_git = path == MMLU
        digest = git_blob(content) if is_git else hashlib.sha256(content)
        lines.append(
            f'GIT ({path}) = {digest}' if is_git else
            f'SHA256 ({path}) = {hashlib.sha256(content).hexdigest()}',
        )
    own = tmp_path / 'eval_gauntlet'
    own.mkdir()
    for file in gauntlets.FOLDER.glob('*.yaml'):
        (own / file.name).write_text(file.read_text())
    (own / 'data_digests.txt').write_text('# files\n' + '\n'.join(lines) + '\n')
    monkeypatch.setattr(prepare, 'FOLDER', own)
    return data


def run(source: object, to: Path, allow: bool = False) -> dict[str, str]:
    """Prepares; returns the state of each file."""
    files = list(prepare.prepare(open_source(str(source)), to, allow))
    return {file.path: file.state for file in files}


def test_a_git_digest_is_that_of_the_blob():
    # `printf hello | git hash-object --stdin`
    assert git_blob(b'hello') == 'b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0'


@pytest.mark.parametrize('where', ['data', 'clone'])
def test_all_files_from_a_folder(data: Path, tmp_path: Path, where: str):
    source = data
    if where == 'clone':
        source = tmp_path / 'llm-foundry'
        (source / 'scripts/eval').mkdir(parents=True)
        data.rename(source / 'scripts/eval/local_data')
    to = tmp_path / 'to'
    assert set(run(source, to).values()) == {'present'}
    for name in prepare.GAUNTLETS:
        assert read_gauntlet(to / f'{name}.yaml') == read_gauntlet(name)
        for task in read_tasks(to / f'{name}_tasks.yaml'):
            assert Path(task.dataset_uri).is_file()
            assert Path(task.dataset_uri).is_absolute()
    released = read_tasks(gauntlets.FOLDER / 'v0.3_tasks.yaml')
    prepared = read_tasks(to / 'v0.3_tasks.yaml')
    assert [t.benchmarks for t in released] == [t.benchmarks for t in prepared]
    assert not list(to.rglob('*.partial'))


def test_what_is_missing_is_left_out_by_name(data: Path, tmp_path: Path):
    (data / MMLU).unlink()
    for task in read_gauntlet('v0.3').categories['language_understanding']:
        (file, ) = {t.dataset_uri for t in all_tasks() if t.label == task.name}
        (data / file).unlink()
    to = tmp_path / 'to'
    states = run(data, to)
    assert states[MMLU] == 'missing' and states[COPA] == 'present'
    for name in prepare.GAUNTLETS:
        gauntlet = read_gauntlet(to / f'{name}.yaml')
        assert set(gauntlet.left_out) == {
            'mmlu/5-shot',
            'lambada_openai/0-shot',
            'hellaswag/0-shot',
            'winograd/3-shot',
            'winogrande/5-shot',
        }
        assert 'language_understanding' not in gauntlet.categories
        scored = {b.label for b in gauntlet.benchmarks}
        run_tasks = read_tasks(to / f'{name}_tasks.yaml')
        assert scored <= {b for task in run_tasks for b in task.benchmarks}
    # It goes on from there.
    other = gauntlet_data(tmp_path / 'other', all_tasks())
    assert set(run(other, to).values()) == {'present'}
    assert read_gauntlet(to / 'paper.yaml').left_out == ()


def test_what_is_there_is_kept(data: Path, tmp_path: Path):
    to = tmp_path / 'to'
    run(data, to)
    before = (to / COPA).stat().st_mtime_ns
    empty = tmp_path / 'empty'
    empty.mkdir()
    assert set(run(empty, to).values()) == {'present'}
    assert (to / COPA).stat().st_mtime_ns == before


def test_damaged_files_are_left_out(data: Path, tmp_path: Path):
    (data / COPA).write_text((data / COPA).read_text()[:-20])
    to = tmp_path / 'to'
    files = {f.path: f for f in prepare.prepare(open_source(str(data)), to)}
    assert files[COPA].state == 'damaged' and not files[COPA].is_used
    problem = f'{COPA} of the source, line 30: it is not JSON'
    assert problem in files[COPA].problem
    assert not (to / COPA).exists()
    assert 'copa/0-shot' in read_gauntlet(to / 'paper.yaml').left_out


def test_modified_files_only_when_allowed(data: Path, tmp_path: Path):
    lines = (data / COPA).read_text().splitlines(keepends=True)
    (data / COPA).write_text(''.join(lines[:10]))
    to = tmp_path / 'to'
    assert run(data, to)[COPA] == 'modified'
    assert not (to / COPA).exists()
    assert 'copa/0-shot' in read_gauntlet(to / 'paper.yaml').left_out
    files = prepare.prepare(open_source(str(data)), to, allow_modified=True)
    (file, ) = (file for file in files if file.path == COPA)
    assert (file.state, file.is_used, file.n_records) == ('modified', True, 10)
    assert read_gauntlet(to / 'paper.yaml').left_out == ()
    # The released file replaces it.
    (data / COPA).write_text(''.join(lines))
    assert run(data, to)[COPA] == 'present'


def test_a_damaged_file_is_mended_by_a_modified_one(
    data: Path,
    tmp_path: Path,
):
    lines = (data / COPA).read_text().splitlines(keepends=True)
    (data / COPA).write_text(''.join(lines[:10]))
    to = tmp_path / 'to'
    (to / COPA).parent.mkdir(parents=True)
    (to / COPA).write_text('{"query')
    files = prepare.prepare(open_source(str(data)), to, allow_modified=True)
    (file, ) = (file for file in files if file.path == COPA)
    assert (file.state, file.is_used, file.n_records) == ('modified', True, 10)
    assert (to / COPA).read_text() == ''.join(lines[:10])


def test_a_file_that_can_be_used_is_kept(data: Path, tmp_path: Path):
    lines = (data / COPA).read_text().splitlines(keepends=True)
    to = tmp_path / 'to'
    run(data, to)
    (to / COPA).write_text(''.join(lines[:7]))
    for other in ('damaged', ''.join(lines[:20])):
        (data / COPA).write_text(other)
        assert run(data, to, allow=True)[COPA] == 'modified'
        assert (to / COPA).read_text() == ''.join(lines[:7])


def test_too_few_records_for_the_prompts(data: Path, tmp_path: Path):
    arc = 'world_knowledge/arc_challenge.jsonl'
    lines = (data / arc).read_text().splitlines(keepends=True)
    (data / arc).write_text(''.join(lines[:20]))
    source = open_source(str(data))
    files = {
        f.path: f
        for f in prepare.prepare(source, tmp_path / 'to', allow_modified=True)
    }
    assert files[arc].state == 'damaged'
    assert 'num_fewshot=[3, 25]: arc_challenge has 20' in files[arc].problem


def test_no_file_at_all(data: Path, tmp_path: Path):
    del data
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(ConfigError, match='--to=.*of 0 files that were found'):
        run(empty, tmp_path / 'to')
    assert not (tmp_path / 'to/paper.yaml').exists()


def test_a_folder_that_cant_be_written(data: Path, tmp_path: Path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='--to=.*it can.t be written'):
        run(data, tmp_path / 'file/to')


@pytest.mark.parametrize('place', [COPA, f'{COPA}.partial', 'paper.yaml'])
def test_what_is_no_file_stays(data: Path, tmp_path: Path, place: str):
    fifo = tmp_path / 'to' / place
    fifo.parent.mkdir(parents=True)
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match='neither a file nor a folder'):
        run(data, tmp_path / 'to')
    assert fifo.is_fifo()


def test_two_do_not_prepare_one_folder(data: Path, tmp_path: Path):
    to = tmp_path / 'to'
    first = prepare.prepare(open_source(str(data)), to)
    next(first)
    with pytest.raises(ConfigError, match='--to=.*another process prepares it'):
        run(data, to)
    assert all(file.state == 'present' for file in first)
    run(data, to)
    assert not [path for path in to.iterdir() if path.name.startswith('.')]


@pytest.mark.parametrize(
    'source,problem',
    [
        ('/absent', "--from='/absent': there is no such folder"),
        ('ftp://host/data', 'ftp is no kind of source'),
        ('https://github.com/a/b/tree/main', 'it is a page, not a repository'),
    ],
)
def test_no_such_source(source: str, problem: str):
    with pytest.raises(ConfigError, match=problem):
        open_source(source)


class Handler(SimpleHTTPRequestHandler):
    """Gives parts of files, as web servers do; keeps a list of what it gave."""

    asked: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get('Range')
        self.asked.append((self.path, wanted))
        file = Path(self.translate_path(self.path))
        if not wanted or not file.is_file():
            super().do_GET()
            return
        start = int(wanted.removeprefix('bytes=').rstrip('-'))
        content = file.read_bytes()
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url(data: Path) -> Iterator[str]:
    Handler.asked.clear()
    handler = functools.partial(Handler, directory=str(data))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_files_are_downloaded(url: str, data: Path, tmp_path: Path):
    (data / COPA).unlink()
    to = tmp_path / 'to'
    states = run(url, to)
    assert states.pop(COPA) == 'missing'
    assert set(states.values()) == {'present'}
    n_asked = len(Handler.asked)
    run(url, to)
    assert Handler.asked[n_asked:] == [(f'/{COPA}', None)]  # Nothing else.


@pytest.mark.parametrize('n_bytes', [100, None])
def test_a_download_is_gone_on_with(
    url: str,
    data: Path,
    tmp_path: Path,
    n_bytes: int | None,
):
    partial = tmp_path / 'to' / f'{COPA}.partial'
    partial.parent.mkdir(parents=True)
    content = (data / COPA).read_bytes()
    partial.write_bytes(content[:n_bytes])  # None: it was about to be renamed.
    assert run(url, tmp_path / 'to')[COPA] == 'present'
    wanted = f'bytes={n_bytes or len(content)}-'
    assert [w for path, w in Handler.asked if path == f'/{COPA}'] == [wanted]


def test_a_wrong_beginning_is_not_gone_on_with(
    url: str,
    tmp_path: Path,
):
    partial = tmp_path / 'to' / f'{COPA}.partial'
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b'other')
    assert run(url, tmp_path / 'to')[COPA] == 'present'
    asked = [w for path, w in Handler.asked if path == f'/{COPA}']
    assert asked == ['bytes=5-', None]


def test_without_a_network(data: Path, tmp_path: Path):
    del data
    with pytest.raises(ConfigError, match='it can.t be had .*give a clone'):
        run('http://127.0.0.1:9', tmp_path / 'to')


def test_a_repository_is_read_at_the_recorded_commit():
    digests = (gauntlets.FOLDER / 'data_digests.txt').read_text()
    url = sources._raw_url('https://github.com/mosaicml/llm-foundry.git')
    start = 'https://raw.githubusercontent.com/mosaicml/llm-foundry/'
    commit, _, folder = url.removeprefix(start).partition('/')
    assert folder == 'scripts/eval/local_data'
    assert commit in digests
    assert sources._raw_url(
        'https://www.github.com/mosaicml/llm-foundry'
    ) == url
    assert sources._raw_url('https://host/data/') == 'https://host/data'


def test_yamls_are_readable(data: Path, tmp_path: Path):
    run(data, tmp_path / 'to')
    text = (tmp_path / 'to/paper.yaml').read_text()
    assert text.startswith('# Written by `foundry-upcycle gauntlet prepare`.')
    assert '&' not in text and '*' not in text  # No anchors.
    assert json.dumps(yaml.safe_load(text))
