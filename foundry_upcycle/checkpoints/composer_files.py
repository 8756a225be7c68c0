"""Companions of a model, as Composer keeps them in a checkpoint.

Composer saves each of the tokenizer's files beside the model's config, under
its name, as ``file_extension`` and ``content``: JSON parsed, ``.txt`` as lines,
``.model`` as bytes. It has no place for a generation config; ours lies beside
the config in the same form.
"""

import json
from pathlib import Path
from typing import Any, Mapping

from foundry_upcycle.checkpoints.companions import (
    GENERATION,
    TOKENIZER_CONFIG,
    Companions,
)
from foundry_upcycle.checkpoints.tokens import piece_names, read_json
from foundry_upcycle.errors import CheckpointError

__all__ = ['from_composer', 'to_composer']

_GENERATION_KEY = 'generation_config'
_TEMPLATE = 'chat_template.jinja'
_TEMPLATES = 'additional_chat_templates'


def from_composer(
    path: str,
    huggingface: Any,
    config: Mapping[str, Any],
    with_tokenizer: bool = True,
) -> Companions:
    """What a checkpoint holds.

    Args:
        path: The checkpoint.
        huggingface: Its ``state.integrations.huggingface``.
        config: The model's config.
        with_tokenizer: Whether the tokenizer is wanted.

    Raises:
        CheckpointError: A file is not as Composer keeps it.
    """
    parts = _mapping(huggingface)
    stored: dict[str, Any] = {}
    if with_tokenizer:
        stored.update(_mapping(parts.get('tokenizer')))
    model = _mapping(parts.get('model'))
    if _GENERATION_KEY in model:
        stored[GENERATION] = model[_GENERATION_KEY]
    files = dict(_file(path, *item) for item in stored.items())
    return Companions(path, files, config)


def to_composer(companions: Companions,
                as_text: bool = False) -> dict[str, Any]:
    """The inverse of ``from_composer``: parts ``tokenizer`` and ``model``.

    Args:
        companions: What to keep.
        as_text: Keeps JSON as text: in a sharded checkpoint each token would
            be an entry of its own.

    Raises:
        CheckpointError: A file is damaged.
    """
    files = _with_templates(companions)
    entries = {
        name: _entry(companions.path, files, name, as_text)
        for name in sorted(files)
    }
    generation = entries.pop(GENERATION, None)
    model = {} if generation is None else {_GENERATION_KEY: generation}
    return {'tokenizer': entries, 'model': model}


def _mapping(value: Any) -> Mapping[str, Any]:
    """A part of a checkpoint; one that is none holds no files."""
    return value if isinstance(value, Mapping) else {}


def _file(path: str, name: str, entry: Any) -> tuple[str, bytes]:
    try:
        extension, content = entry['file_extension'], entry['content']
        # Older versions of Composer keep the extension out of the name.
        if not name.endswith(extension):
            name += extension
        if isinstance(content, bytes):
            data = content
        elif isinstance(content, str):
            data = content.encode()
        elif extension == '.txt':
            data = '\n'.join(content).encode()
        else:
            data = json.dumps(content, indent=2).encode()
    except (
            AttributeError,
            KeyError,
            RecursionError,
            TypeError,
            ValueError,
    ) as error:
        raise CheckpointError(
            path,
            f'{name} of its tokenizer is not as Composer keeps it ({error!r}).',
            'leave it out (--no-tokenizer), or name another (--tokenizer).',
        ) from error
    parts = Path(name).parts
    if '..' in parts or Path(name).is_absolute() or _is_of_model(name):
        raise CheckpointError(
            path,
            f'it holds {name!r}, which is no file of a tokenizer.',
            'do not use a checkpoint that you do not trust.',
        )
    return name, data


def _is_of_model(name: str) -> bool:
    is_weights = Path(name).match('*.safetensors*')
    return is_weights or name in ('config.json', 'manifest.json')


def _entry(
    path: str,
    files: Mapping[str, bytes],
    name: str,
    as_text: bool,
) -> dict[str, Any]:
    content: Any = files[name]
    extension = Path(name).suffix
    if extension == '.json' and not as_text:
        content = read_json(path, files, name)
    elif extension == '.json' or extension == '.py' and '/' not in name:
        content = _text(path, files, name)
    elif extension == '.txt':
        content = _text(path, files, name).split('\n')
    elif extension != '.model' or not piece_names(content):
        # Without an extension, which Composer passes by. No bytes would be
        # pickled as a call, which is not loaded.
        extension, content = '', content or ''
    return {'file_extension': extension, 'content': content}


def _text(path: str, files: Mapping[str, bytes], name: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(
            Path(path, name),
            f'it is not text in UTF-8 ({error}).',
            'copy it again, or leave the tokenizer out (--no-tokenizer).',
        ) from error


def _with_templates(companions: Companions) -> dict[str, bytes]:
    """The files, chat templates in the tokenizer's config.

    That is where Foundry's exporter looks for them.
    """
    files = dict(companions.readable_files)
    named = {}
    for name in sorted(files):
        if Path(name).parent == Path(_TEMPLATES):
            named[Path(name).stem] = _text(companions.path, files, name)
            del files[name]
    if _TEMPLATE in files:
        default = _text(companions.path, files, _TEMPLATE)
        named = {'default': default, **named}
        del files[_TEMPLATE]
    if named:
        config = read_json(companions.path, files, TOKENIZER_CONFIG)
        config['chat_template'] = named['default'] if [*named] == [
            'default'
        ] else [{
            'name': name,
            'template': template
        } for name, template in named.items()]
        files[TOKENIZER_CONFIG] = json.dumps(config, indent=2).encode()
    return files
