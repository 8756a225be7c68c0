"""Whatever a file holds: its values, or one sentence; never more work."""

import json
import time
from pathlib import Path

import pytest

from foundry_upcycle.documents import (
    DocumentError,
    parse_json,
    read_config,
    read_json,
    read_yaml,
)


def nines(first: str, template: str) -> str:
    """Eight names more, each of which stands for nine of the one before."""
    lines = [first]
    for name, below in zip('bcdefghi', 'abcdefgh'):
        aliases = ', '.join(9 * [f'*{below}'])
        lines.append(f'{name}: &{name} {template.format(aliases)}')
    return '\n'.join(lines)


BOMB = nines('a: &a [0, 0, 0, 0, 0, 0, 0, 0, 0]', '[{}]')
MERGES = nines('a: &a {x: 1}', '{{<<: [{}]}}')
DEEP = '[' * 3000 + ']' * 3000

UNREADABLE = {
    'bomb': (BOMB, 'aliases'),
    'merges': (MERGES, 'aliases'),
    'deep': (DEEP, 'nest deeper'),
    'holds itself': ('a: &a [*a]', 'holds itself'),
    'number': ('a: 1' + 400 * '0', '401 digits'),
    'large number': ('a: 1' + 5000 * '0', '5001 digits'),
    'object': ('a: !!python/object/apply:os.getcwd []', 'constructor'),
    'not UTF-8': (b'a: \xff\xfe', "can't be read"),
    'cut off': ('a: [1', "can't be read"),
}


@pytest.mark.parametrize('read', [read_yaml, read_config])
@pytest.mark.parametrize('name', UNREADABLE)
def test_what_no_yaml_should_hold(tmp_path: Path, name: str, read):
    content, problem = UNREADABLE[name]
    path = tmp_path / 'file.yaml'
    path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    started = time.process_time()
    with pytest.raises(DocumentError, match=problem):
        read(path)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    'text, problem',
    [
        ('[' * 100_000, 'nest deeper'),
        ('{"a": 1' + '0' * 400 + '}', '401 digits'),
        (b'{"\xff": 1}', 'not JSON'),
        ('{"a": ', 'not JSON'),
    ],
)
def test_what_no_json_should_hold(text: bytes | str, problem: str):
    with pytest.raises(DocumentError, match=problem):
        parse_json(text)


def test_values_are_those_of_the_libraries(tmp_path: Path):
    path = tmp_path / 'file'
    content = {'a': [1, -2**63, 0.5, None, True, 'é'], 'b': {'c': {}}}
    path.write_text(json.dumps(content))
    assert read_json(path) == read_yaml(path) == read_config(path) == content
    path.write_text('x: &x {lr: 5e-5}\ny: *x\n')
    assert read_config(path) == {'x': {'lr': 5e-5}, 'y': {'lr': 5e-5}}
    path.write_text('')
    assert read_yaml(path) is None and read_config(path) == {}
    path.write_text('a: 2024-13-45')  # OmegaConf has no dates.
    assert read_config(path) == {'a': '2024-13-45'}
    with pytest.raises(DocumentError, match='month'):
        read_yaml(path)


@pytest.mark.parametrize('read', [read_json, read_yaml, read_config])
def test_what_is_no_file(tmp_path: Path, read):
    with pytest.raises(DocumentError, match='no such file'):
        read(tmp_path / 'none')
    with pytest.raises(DocumentError, match='directory'):
        read(tmp_path)
    with pytest.raises(DocumentError, match="can't be read"):
        read('a\0b')
    with pytest.raises(DocumentError, match='larger than'):
        read('/dev/zero')


def test_a_config_is_a_mapping_or_a_list(tmp_path: Path):
    path = tmp_path / 'file.yaml'
    path.write_text('5')
    assert read_yaml(path) == 5
    with pytest.raises(DocumentError, match='neither a mapping'):
        read_config(path)
