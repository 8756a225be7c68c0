"""What a Hugging Face ``config.json`` may say: keys, sizes, kinds of values."""

import math
import warnings
from typing import Any, Callable, Mapping

from foundry_upcycle.checkpoints.huggingface.architectures import (
    KINDS,
    SIZES,
    Architecture,
)
from foundry_upcycle.checkpoints.huggingface.refused import REFUSED
from foundry_upcycle.config import is_number, is_whole
from foundry_upcycle.errors import ConfigError, UpcyclingWarning

__all__ = [
    'check_experts',
    'check_keys',
    'check_kind',
    'check_kinds',
    'check_sizes',
]

_IS_KIND: Mapping[str, Callable[[Any], bool]] = {
    'a number above 0': lambda v: is_number(v) and 0 < v < math.inf,
    'a share from 0 to 1': lambda v: is_number(v) and 0 <= v <= 1,
    'a whole number from 0': lambda v: is_whole(v) and v >= 0,
    'true or false': lambda v: isinstance(v, bool),
    'a text': lambda v: isinstance(v, str),
}


def check_keys(
    given: Mapping[str, Any],
    known: set[str],
    architecture: Architecture,
) -> None:
    """Refuses what MPT has not, and warns of what is not known.

    Args:
        given: The content of ``config.json``.
        known: Keys that transformers knows, or are read here.
        architecture: Its architecture.

    Raises:
        ConfigError: A key asks for something that MPT has not.
    """
    refused = {**REFUSED, **architecture.refused}
    for key, (accepted, feature) in refused.items():
        value = given.get(key)
        if key in known and value is not None and value != accepted:
            raise ConfigError(
                key,
                value,
                f'{feature}, which MPT does not have.',
                'start from a model without that.',
            )
    # What the architecture does not know, and says that it has not, is no news.
    absent = {key: accepted for key, (accepted, _) in refused.items()}
    unknown = sorted(
        key for key in given.keys() - known
        if given[key] is not None and given[key] != absent.get(key)
    )
    if unknown:
        warnings.warn(
            f'config.json has {", ".join(unknown)}, which transformers '
            f'{given["model_type"]} does not know: ignored.',
            UpcyclingWarning,
            stacklevel=4,  # The caller of to_mpt.
        )


def check_sizes(hf: Mapping[str, Any]) -> None:
    """Refuses sizes, and numbers of things, that are none."""
    for key in sorted(SIZES & hf.keys()):
        value = hf[key]
        if not is_whole(value) or value < 1:
            raise ConfigError(
                key,
                value,
                'it is a size or a number of things.',
                'set it to a whole number from 1.',
            )


def check_kinds(hf: Mapping[str, Any]) -> None:
    """Refuses values of another kind than their keys'."""
    for kind, keys in KINDS.items():
        for key in sorted(keys & hf.keys()):
            check_kind(key, hf[key], kind)


def check_kind(key: str, value: Any, kind: str) -> None:
    """Checks that a value is of a kind, named as in ``KINDS``."""
    if not _IS_KIND[kind](value):
        raise ConfigError(
            key, value, f'it is not {kind}.', 'repair config.json.'
        )


def check_experts(hf: Mapping[str, Any]) -> None:
    """Refuses more experts a token than there are."""
    top_k = hf.get('num_experts_per_tok', 1)
    experts = hf.get('num_local_experts', hf.get('num_experts', top_k))
    if top_k > experts:
        raise ConfigError(
            'num_experts_per_tok',
            top_k,
            f'there are {experts} experts.',
            'repair config.json.',
        )
