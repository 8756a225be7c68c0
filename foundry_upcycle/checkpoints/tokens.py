"""The ids of a tokenizer, read from its files; none of its code is run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional

from foundry_upcycle.config import is_whole
from foundry_upcycle.errors import CheckpointError

__all__ = ['Tokens', 'piece_names', 'read_json', 'read_tokens']

# Key in a config -> the token's role in a tokenizer.
_ROLES = {
    'bos_token_id': 'bos_token',
    'eos_token_id': 'eos_token',
    'pad_token_id': 'pad_token',
}


@dataclass(frozen=True)
class Tokens:
    """A tokenizer's ids.

    Attributes:
        vocabulary: Token -> id, as trained; empty where it is in a format
            that is not read.
        added: Token -> id, of those put in later.
        special: ``eos_token_id`` and the like -> id, where there is one.
    """
    vocabulary: Mapping[str, int]
    added: Mapping[str, int]
    special: Mapping[str, int]

    @property
    def ids(self) -> dict[str, int]:
        """Every token -> id."""
        return {**self.vocabulary, **self.added}


def read_tokens(path: str, files: Mapping[str, bytes]) -> Tokens:
    """Reads the ids of a tokenizer.

    Args:
        path: Where the files come from, for messages.
        files: Name -> content.

    Raises:
        CheckpointError: A file is damaged.
    """
    config = read_json(path, files, 'tokenizer_config.json')
    try:
        vocabulary = _vocabulary(path, files)
        added = _added(path, files, config)
        roles = {**read_json(path, files, 'special_tokens_map.json'), **config}
        known = {**vocabulary, **added}
        if not all(map(is_whole, known.values())):
            raise ValueError('an id is no whole number')
        special = {
            key: known[name]
            for key, role in _ROLES.items()
            if (name := _name(roles.get(role))) in known
        }
    # What is not as transformers writes it, may be wrong in any way.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path, error) from error
    return Tokens(vocabulary, added, special)


def piece_names(model: bytes) -> Optional[list[str]]:
    """Tokens of a SentencePiece model in order; None if it is none.

    Other tokenizers as well call their file ``tokenizer.model``.
    """
    from sentencepiece import SentencePieceProcessor
    try:
        pieces: Any = SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        return None
    return [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]


def _vocabulary(path: str, files: Mapping[str, bytes]) -> dict[str, int]:
    if 'tokenizer.json' in files:
        found = read_json(path, files, 'tokenizer.json')['model']['vocab']
        # A Unigram's tokens stand in the order of their ids, with scores.
        return found if isinstance(found, dict) else {
            token: i
            for i, (token, _) in enumerate(found)
        }
    if 'vocab.json' in files:
        return read_json(path, files, 'vocab.json')
    if 'tokenizer.model' in files:
        names = piece_names(files['tokenizer.model']) or []
        return {name: i for i, name in enumerate(names)}
    return {}


def _added(
    path: str,
    files: Mapping[str, bytes],
    config: Mapping[str, Any],
) -> dict[str, int]:
    added = dict(read_json(path, files, 'added_tokens.json'))
    by_id = config.get('added_tokens_decoder') or {}
    added |= {token['content']: int(i) for i, token in by_id.items()}
    tokenizer = read_json(path, files, 'tokenizer.json')
    tokens = tokenizer.get('added_tokens') or []
    return added | {token['content']: token['id'] for token in tokens}


def _name(token: Any) -> Optional[str]:
    """Of a special token: a text, or a mapping that holds it."""
    return token.get('content') if isinstance(token, Mapping) else token


def read_json(
    path: str,
    files: Mapping[str, bytes],
    name: str,
) -> dict[str, Any]:
    """Content of a JSON file, empty where there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    if name not in files:
        return {}
    try:
        content = json.loads(files[name])
        if not isinstance(content, dict):
            raise ValueError('it holds no mapping')
        return content
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            Path(path, name),
            f'it is not JSON ({error!r}).',
            'copy it again, or remove it; --no-tokenizer passes over what is '
            "a tokenizer's.",
        ) from error


def _damaged(path: Any, error: Exception) -> CheckpointError:
    return CheckpointError(
        path,
        f'its tokenizer could not be read ({error!r}).',
        'copy it again, or leave it out (--no-tokenizer).',
    )
