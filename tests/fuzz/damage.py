"""Damage that files suffer, drawn from a random generator."""

import copy
import io
import json
import struct
import zipfile
from random import Random
from typing import Any, Callable

__all__ = [
    'damage_bytes',
    'damage_header',
    'damage_json',
    'damage_once',
    'damage_pickle',
]

# What stands where a number, a name, a list or a mapping was.
_ODD: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: -1,
    lambda: 0.5,
    lambda: 2**31,
    lambda: 10**18,
    lambda: 10**400,
    lambda: float('nan'),
    lambda: float('inf'),
    lambda: '',
    lambda: '\ud800',
    lambda: '../../etc/passwd',
    lambda: 'x' * 10_000,
    lambda: [],
    lambda: [None],
    lambda: [[1, 2], {}],
    lambda: {},
    lambda: {
        '': {
            'a': 1
        }
    },
)


def damage_bytes(data: bytes, random: Random) -> bytes:
    """One to three damages, as ``damage_once`` does."""
    for _ in range(random.randint(1, 3)):
        data = damage_once(data, random)
    return data


def damage_once(data: bytes, random: Random) -> bytes:
    """A flipped bit, a cut, an insertion, or bytes of another place."""
    changed = bytearray(data)
    kind = random.randint(0, 6)
    at = random.randint(0, max(0, len(changed) - 1))
    n = random.choice((1, 2, 4, 8, 64, 1024))
    if kind <= 1 and changed:
        changed[at] ^= 1 << random.randint(0, 7)
    elif kind == 2:
        changed[at:at + n] = random.randbytes(n)
    elif kind == 3:
        del changed[at:]
    elif kind == 4:
        changed[at:at] = random.randbytes(n)
    elif kind == 5:
        del changed[at:at + n]
    else:
        other = random.randint(0, max(0, len(changed) - 1))
        changed[at:at + n] = changed[other:other + n]
    return bytes(changed)


def damage_json(data: bytes, random: Random) -> bytes:
    """A value becomes another one, or goes, or changes places."""
    content = json.loads(data)
    places = [*_places(content)]
    for _ in range(random.randint(1, 2)):
        holder, key = random.choice(places)
        kind = random.randint(0, 5)
        if kind == 0:
            del holder[key]
            break
        if kind == 1:
            other_holder, other = random.choice(places)
            holder[key] = copy.deepcopy(other_holder[other])
            break
        if kind == 2 and isinstance(holder, dict):
            holder[f'{key}x'] = holder.pop(key)
            break
        holder[key] = random.choice(_ODD)()
        break
    text = json.dumps(content)
    if random.randint(0, 50) == 0:
        text = '[' * 10**5 + text
    if random.randint(0, 50) == 0:
        text = text.replace('1', '1' * 5000, 1)
    return text.encode()


def _places(node: Any) -> Any:
    below = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in below:
        yield node, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def damage_header(data: bytes, random: Random) -> bytes:
    """Damage to what a safetensors file says of its tensors."""
    (n_bytes, ) = struct.unpack('<Q', data[:8])
    header = damage_json(data[8:8 + n_bytes], random)
    return struct.pack('<Q', len(header)) + header + data[8 + n_bytes:]


def damage_pickle(data: bytes, random: Random) -> bytes:
    """Damage to an archive's pickle that no checksum shows."""
    packed = io.BytesIO()
    with (
            zipfile.ZipFile(io.BytesIO(data)) as source,
            zipfile.ZipFile(packed, 'w') as target,
    ):
        for name in source.namelist():
            record = source.read(name)
            if name.endswith('data.pkl'):
                record = damage_bytes(record, random)
            target.writestr(name, record)
    return packed.getvalue()
