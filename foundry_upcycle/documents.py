"""YAML and JSON that others wrote, read in bounds.

A file of some bytes can ask for gigabytes: aliases of YAML multiply, and what
nests too deep or has numbers of thousands of digits ends in the middle of some
library. Here it ends in one sentence about the file.
"""

import json
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

__all__ = [
    'DocumentError',
    'parse_json',
    'read_config',
    'read_json',
    'read_yaml',
]

_MAX_BYTES = 1 << 28
_MAX_YAML_BYTES = 1 << 24
# Of a YAML with its aliases written out: far more than any has that is meant.
_MAX_NODES = 100_000
_MAX_DEPTH = 100
# Digits of the largest integer that fits in 64 bits.
_MAX_DIGITS = 19


class DocumentError(ValueError):
    """A file that can't be read; the message is a sentence about it."""


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        DocumentError: There is no such file, or it can't be read.
    """
    return parse_json(_read(Path(path), _MAX_BYTES))


def parse_json(text: bytes | str) -> Any:
    """What a JSON text holds.

    Raises:
        DocumentError: It is not JSON, nests too deep, or has a whole number
            that does not fit in 64 bits.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except DocumentError:
        raise
    except ValueError as error:  # Also of bytes that are not UTF-8.
        raise DocumentError(f'it is not JSON ({error}).') from error
    except RecursionError:
        _refuse_depth()


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, by the rules of PyYAML.

    Raises:
        DocumentError: There is no such file, or it can't be read.
    """
    text = _read(Path(path), _MAX_YAML_BYTES)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_size(node)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        _refuse_yaml(error)


def read_config(path: str | Path) -> DictConfig | ListConfig:
    """What a YAML file holds, as Foundry reads its own.

    By the rules of OmegaConf 5e-5 is a number, and no key may stand twice.

    Raises:
        DocumentError: There is no such file, it can't be read, or it holds
            neither a mapping nor a list.
    """
    text = _read(Path(path), _MAX_YAML_BYTES)
    try:
        _check_size(yaml.SafeLoader(text).get_single_node())
        return OmegaConf.load(StringIO(text.decode()))
    except OSError as error:  # OmegaConf's word for a single value.
        raise DocumentError(
            'it holds neither a mapping of keys to values nor a list.',
        ) from error
    # OmegaConf raises what its parts do.
    except Exception as error:
        _refuse_yaml(error)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open('rb') as stream:
            content = stream.read(limit + 1)
    except FileNotFoundError:
        raise DocumentError('there is no such file.') from None
    # A name with a NUL is a ValueError.
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise DocumentError(f"it can't be read ({reason}).") from error
    if len(content) > limit:
        raise DocumentError(f'it is larger than {limit >> 20} MiB.')
    return content


def _whole(digits: str) -> int:
    if len(digits.lstrip('-')) > _MAX_DIGITS:
        raise DocumentError(
            f'it holds a whole number of {len(digits)} digits.',
        )
    return int(digits)


def _check_size(root: yaml.Node | None) -> None:
    """Bounds a YAML's size with its aliases written out, and its depth."""
    sizes: dict[int, int] = {}  # Node -> nodes of it and below it.
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise DocumentError('it holds a list or mapping that holds itself.')
        if depth > _MAX_DEPTH:
            _refuse_depth()
        if isinstance(node, yaml.ScalarNode):
            if node.tag == 'tag:yaml.org,2002:int':
                _whole(node.value)
            return 1
        if id(node) not in sizes:
            open_nodes.add(id(node))
            below = node.value
            if isinstance(node, yaml.MappingNode):
                below = [each for pair in node.value for each in pair]
            sizes[id(node)] = 1 + sum(size(each, depth + 1) for each in below)
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if root is not None and size(root, 0) > _MAX_NODES:
        raise DocumentError(
            'its aliases stand for more values than this reads '
            f'({_MAX_NODES:,}).',
        )


def _refuse_depth() -> NoReturn:
    raise DocumentError(
        f'its lists and mappings nest deeper than {_MAX_DEPTH}.',
    ) from None


def _refuse_yaml(error: Exception) -> NoReturn:
    if isinstance(error, DocumentError):
        raise error
    if isinstance(error, RecursionError):
        _refuse_depth()
    reason = ' '.join(str(error).split())
    raise DocumentError(f"it can't be read as YAML ({reason}).") from error
