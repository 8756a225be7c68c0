"""Stored tensors that MPT has no place for, and that add nothing: zeros.

Biases that an architecture writes though the model was trained without, and the
shared expert of a Qwen2-MoE that a model without one was put into.
"""

import re
from typing import Any, Callable, Mapping

from foundry_upcycle.checkpoints.base import TensorInfo

__all__ = ['without_zeros']

# What in config.json says that there are biases -> their names.
_BIASES = {
    'attention_bias': re.compile(r'.*\.self_attn\.\w+_proj\.bias'),
    'mlp_bias': re.compile(r'.*\.mlp\.\w+_proj\.bias'),
}
_SHARED_EXPERT = re.compile(r'(.*\.mlp\.shared_expert)\.down_proj\.weight')


def without_zeros(
    hf_config: Mapping[str, Any],
    stored: Mapping[str, TensorInfo],
    is_zero: Callable[[str], bool],
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """A model's config and tensors without those that are zero.

    Biases go where all of their kind are zero, a shared expert and its gate
    where nothing comes out of it; what is not zero stays.

    Args:
        hf_config: The content of ``config.json``.
        stored: Every stored tensor.
        is_zero: Tells whether the tensor of a name is.
    """
    config, kept = dict(hf_config), dict(stored)
    for key, pattern in _BIASES.items():
        biases = [name for name in kept if pattern.fullmatch(name)]
        if config.get(key) is True and biases and all(map(is_zero, biases)):
            config[key] = False
            kept = {n: info for n, info in kept.items() if n not in biases}
    for match in map(_SHARED_EXPERT.fullmatch, stored):
        if match and is_zero(match[0]):
            kept = {
                name: info
                for name, info in kept.items()
                if not name.startswith(match[1])
            }
    return config, kept
