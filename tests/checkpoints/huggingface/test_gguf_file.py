"""Damage of GGUF files, byte by byte."""

import struct
from pathlib import Path

import pytest
from tiny_gguf import write_gguf

from foundry_upcycle.checkpoints.huggingface.gguf import GGUFReader
from foundry_upcycle.checkpoints.huggingface.gguf_file import read_gguf
from foundry_upcycle.errors import CheckpointError

U32, TEXT, ARRAY = 4, 8, 9
HUGE = 10**18


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack('<Q', len(encoded)) + encoded


def field(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack('<I', kind) + value


def tensor(name: str, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f'<I{len(dims)}Q', len(dims), *dims)
    return text(name) + sizes + struct.pack('<IQ', kind, offset)


def container(
    *fields: bytes,
    tensors: tuple[bytes, ...] = (),
    version: int = 3,
    n_fields: int = -1,
    n_tensors: int = -1,
    data: int = 64,
) -> bytes:
    counts = struct.pack(
        '<QQ',
        len(tensors) if n_tensors < 0 else n_tensors,
        len(fields) if n_fields < 0 else n_fields,
    )
    head = b'GGUF' + struct.pack('<I', version) + counts
    content = head + b''.join(fields) + b''.join(tensors)
    return content + bytes(-len(content) % 32 + data)


def test_a_container(tmp_path: Path):
    file = tmp_path / 'm.gguf'
    file.write_bytes(
        container(
            field('a', TEXT, text('é')),
            field('b', ARRAY, struct.pack('<IQ2h', 3, 2, -1, 7)),
            field('c', ARRAY,
                  struct.pack('<IQ', TEXT, 1) + text('x')),
            tensors=(tensor('t', 4, 2), tensor('u', 2, offset=32)),
        ),
    )
    found = read_gguf(str(file))
    assert found.fields == {'a': 'é', 'b': [-1, 7], 'c': ['x']}
    t, u = found.tensors.values()
    assert t.shape == (2, 4) and t.n_bytes == 32 and u.offset == t.offset + 32


@pytest.mark.parametrize(
    'content,match',
    [
        (b'', 'is not a GGUF file, or damaged'),
        (b'GG', 'is not a GGUF file, or damaged'),
        (b'x' * 1000, 'is not a GGUF file, or damaged .*not start with GGUF'),
        (container(version=1), 'GGUF file of version 1; known are 2 and 3'),
        (container(version=3 << 24), 'it is big-endian. Fix: convert'),
        (container(n_fields=HUGE), f'damaged .{HUGE} things cannot be in'),
        (container(n_tensors=HUGE), f'damaged .{HUGE} things cannot be in'),
        (container(struct.pack('<Q', HUGE)), f'{HUGE} bytes should follow'),
        (
            container(field('a', TEXT, struct.pack('<Q', HUGE))),
            f'{HUGE} bytes should follow',
        ),
        (
            container(field('a', ARRAY, struct.pack('<IQ', TEXT, HUGE))),
            f'{HUGE} things cannot be',
        ),
        (
            container(field('a', ARRAY, struct.pack('<IQ', ARRAY, 1))),
            'a is of the kind 9',
        ),
        (container(field('a', 99, b'')), 'a is of the kind 99'),
        (
            container(field('a', TEXT,
                            struct.pack('<Q', 1) + b'\xff')),
            "damaged .'utf-8' codec",
        ),
        (
            container(*[field('a', TEXT, text('b'))] * 2),
            'a is there twice',
        ),
        (
            container(field('general.alignment', U32, struct.pack('<I', 0))),
            'general.alignment is 0',
        ),
        (
            container(tensors=(tensor('t', *range(2, 10)), )),
            't has 8 dimensions',
        ),
        (
            container(tensors=(text('t') + struct.pack('<I', 2**32 - 1), )),
            't has 4294967295 dimensions',
        ),
        (
            container(tensors=(tensor('t', HUGE, HUGE), )),
            f't ends at byte 4{"0" * 33}096 of',
        ),
        (
            container(tensors=(tensor('t', 4, offset=2**63), )),
            't ends at byte 9223372036854775',
        ),
        (
            container(tensors=(tensor('t', 8), tensor('u', 8, offset=16)), ),
            'u lies over another tensor',
        ),
        (
            container(tensors=(tensor('t', 8, kind=999), )),
            't is of the type 999, which .* Fix: run `pip install --upgrade',
        ),
        # Q8_0: blocks of 32.
        (
            container(tensors=(tensor('t', 33, kind=8), )),
            't has 33 columns of Q8_0, which come by 32',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_damage_is_named(tmp_path: Path, content: bytes, match: str):
    file = tmp_path / 'm.gguf'
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=match):
        read_gguf(str(file))


@pytest.mark.parametrize('kept', [4, 100, 0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, kept: float):
    file = tmp_path / 'tiny.gguf'
    write_gguf(file)
    content = file.read_bytes()
    n_bytes = kept if isinstance(kept, int) else int(kept * len(content))
    file.write_bytes(content[:n_bytes])
    with pytest.raises(CheckpointError, match='it is not a GGUF file, or dam'):
        GGUFReader(str(file))


def test_values_of_another_kind_are_named(tmp_path: Path):
    file = tmp_path / 'm.gguf'
    file.write_bytes(container(field('a', TEXT, text('b' * 999))))
    with pytest.raises(CheckpointError, match="a is 'b{50,59}, which is not a"):
        read_gguf(str(file)).get('a', 'a number')


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(CheckpointError, match='it could not be read .*No such'):
        read_gguf(str(tmp_path / 'm.gguf'))
