"""What goes with a model's weights: its tokenizer and generation config."""

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Iterator, Mapping

from foundry_upcycle.checkpoints.huggingface.architectures import TOKEN_IDS
from foundry_upcycle.checkpoints.source import SourceFiles
from foundry_upcycle.checkpoints.tokens import Tokens, read_json, read_tokens

__all__ = ['GENERATION', 'TOKENIZER_CONFIG', 'Companions']

GENERATION = 'generation_config.json'
TOKENIZER_CONFIG = 'tokenizer_config.json'

# Files that hold the tokens themselves ...
_VOCABULARIES = (
    'tokenizer.json',
    '*.model',
    '*.model.v*',
    'vocab.json',
    'vocab.txt',
    '*.tiktoken',
    'tekken.json',
)
# ... and those that say more of them.
_DETAILS = (
    TOKENIZER_CONFIG,
    'special_tokens_map.json',
    'added_tokens.json',
    'merges.txt',
    'chat_template.jinja',
    'chat_template.json',
    'additional_chat_templates/*.jinja',
    'tokenization_*.py',
)


@dataclass(frozen=True)
class Companions:
    """Files that a Hugging Face folder has beside its weights.

    Args:
        path: Where they come from, for messages.
        files: Name in the folder -> content.
        config: The model's config, as far as it says ids of special tokens.
    """
    path: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_folder(
        cls,
        folder: str,
        config: Mapping[str, Any] = {},  # noqa: B006
        with_tokenizer: bool = True,
    ) -> 'Companions':
        """Those of a Hugging Face folder, whatever there is of them.

        Args:
            folder: The folder.
            config: The content of its ``config.json``.
            with_tokenizer: Whether the tokenizer is wanted.

        Raises:
            CheckpointError: A file can't be read.
        """
        source = SourceFiles(folder)
        names = sorted({*_names(Path(folder), with_tokenizer)})
        files = {name: source.read(name) for name in names}
        return cls(folder, files, config)

    @property
    def has_tokenizer(self) -> bool:
        return any(
            Path(name).match(pattern)
            for name in self.files
            for pattern in _VOCABULARIES
        )

    @property
    def runs_code(self) -> bool:
        """Whether the tokenizer is a class of its own."""
        return any(name.endswith('.py') for name in self.files)

    @cached_property
    def tokens(self) -> Tokens:
        """The tokenizer's ids, as its files say them.

        Raises:
            CheckpointError: A file is damaged.
        """
        return read_tokens(self.path, self.files)

    def token_ids(self, vocab_size: int) -> dict[str, Any]:
        """Ids of ``TOKEN_IDS``: an id, a list of them, or None.

        The model's config comes first, then its generation config, then the
        tokenizer.

        Args:
            vocab_size: Rows of the embedding. An id that has none is only
                repeated where a config says it.
        """
        said = [_ids(self.config), _ids(self.json(GENERATION))]
        if self.has_tokenizer:
            special = self.tokens.special
            said.append({k: i for k, i in special.items() if i < vocab_size})
        return {
            key: next((ids[key]
                       for ids in said
                       if key in ids), None)
            for key in TOKEN_IDS
        }

    def json(self, name: str) -> dict[str, Any]:
        """Content of a JSON file, empty where there is none.

        Raises:
            CheckpointError: It is damaged.
        """
        return read_json(self.path, self.files, name)

    @cached_property
    def readable_files(self) -> dict[str, bytes]:
        """The files, such that transformers 4 and 5 load them.

        Those that transformers 4 can load are as they were.
        """
        config = self.json(TOKENIZER_CONFIG)
        readable = _for_transformers_4(config)
        if readable == config:
            return dict(self.files)
        text = json.dumps(readable, indent=2) + '\n'
        return {**self.files, TOKENIZER_CONFIG: text.encode()}

    def write(self, folder: Path) -> None:
        """Writes the files into a folder."""
        for name, content in self.readable_files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _names(folder: Path, with_tokenizer: bool) -> Iterator[str]:
    of_tokenizer = (*_VOCABULARIES, *_DETAILS) if with_tokenizer else ()
    for pattern in (*of_tokenizer, GENERATION):
        for path in folder.glob(pattern):
            if path.is_file():
                yield str(path.relative_to(folder))
    if with_tokenizer:
        yield from _code_files(folder)


def _code_files(folder: Path) -> Iterator[str]:
    """Names of the files that a tokenizer's own class is in."""
    left, seen = [*_own_modules(folder / TOKENIZER_CONFIG)], set()
    if not left:
        return
    from transformers.dynamic_module_utils import get_relative_imports
    while left:
        module = left.pop()
        file = folder / f'{module}.py'
        # Beside it alone, and each once: modules may import one another.
        is_beside = os.path.basename(module) == module
        if not is_beside or module in seen or not os.path.isfile(file):
            continue
        seen.add(module)
        yield file.name
        try:
            left += get_relative_imports(file)
        except (OSError, ValueError):
            pass  # Whoever runs it says what is wrong with it.


def _own_modules(tokenizer_config: Path) -> set[str]:
    try:
        config = json.loads(tokenizer_config.read_bytes())
        classes = config['auto_map']['AutoTokenizer']
    # Whoever needs the file says what is wrong with it.
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
    if not isinstance(classes, list):
        classes = [classes]
    # Slow and fast, "module.Class" or "repository--module.Class", or None.
    names = [c.split('--')[-1] for c in classes if isinstance(c, str)]
    return {name.rpartition('.')[0] for name in names} - {''}


def _ids(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: config[k] for k in TOKEN_IDS if config.get(k) is not None}


def _for_transformers_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``tokenizer_config.json`` of transformers 5 as 4 writes it."""
    readable = dict(config)
    if config.get('tokenizer_class') == 'TokenizersBackend':
        readable['tokenizer_class'] = 'PreTrainedTokenizerFast'
        # The two classes differ in this default.
        names = ['input_ids', 'attention_mask']
        readable.setdefault('model_input_names', names)
    extra = config.get('extra_special_tokens')
    if isinstance(extra, list):
        del readable['extra_special_tokens']
        named = config.get('additional_special_tokens') or []
        readable['additional_special_tokens'] = [
            *named, *(token for token in extra if token not in named)
        ]
    return readable
