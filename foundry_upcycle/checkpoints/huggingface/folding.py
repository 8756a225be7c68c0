"""The numbers a Hugging Face model multiplies by, which MPT has in its weights.

Granite multiplies embeddings, attention scores and what each layer adds, and
divides logits. Of these only the logits' is a setting of MPT; the others are
in the weights that they multiply. A serving architecture without that setting
has it in its head.
"""

import math
from typing import Any, Mapping

from foundry_upcycle.checkpoints.huggingface.architectures import ARCHITECTURES
from foundry_upcycle.checkpoints.huggingface.checks import check_kind

__all__ = ['exported_multipliers', 'factor', 'logit_scale', 'multipliers']


def multipliers(hf_config: Mapping[str, Any]) -> dict[str, float]:
    """Those of a ``config.json``; empty where the architecture has none.

    Raises:
        ConfigError: One is not a number above 0.
    """
    architecture = ARCHITECTURES.get(str(hf_config.get('model_type')))
    found = {}
    for key in architecture.multipliers if architecture else ():
        value = hf_config.get(key)
        found[key] = 1.0 if value is None else value
        check_kind(key, found[key], 'a number above 0')
    return found


def exported_multipliers(
    mpt: Mapping[str, Any],
    model_type: str,
    like: Mapping[str, Any],
) -> dict[str, float]:
    """Those of the Hugging Face model that an MPT becomes.

    Args:
        mpt: The MPT's complete settings.
        model_type: The architecture.
        like: The ``config.json`` of the model it came from, whose numbers are
            taken, so that its weights come back; else they are what changes
            no weight.
    """
    if not ARCHITECTURES[model_type].multipliers:
        return {}
    if like.get('model_type') != model_type:
        like = {'attention_multiplier': mpt['head_dim']**-0.5}
    found = multipliers({**like, 'model_type': model_type})
    if mpt['tie_word_embeddings']:
        scale = _number(mpt) * found['embedding_multiplier']
        found['logits_scaling'] = 1 / scale
    return found


def logit_scale(numbers: Mapping[str, float], is_tied: bool) -> float:
    """MPT's ``logit_scale``; a head of its own has it in its weights."""
    if not is_tied:
        return 1.0
    return 1 / (numbers['logits_scaling'] * numbers['embedding_multiplier'])


def factor(
    hf: str,
    mpt: Mapping[str, Any],
    numbers: Mapping[str, float],
) -> float:
    """What an MPT has a Hugging Face tensor multiplied by.

    Args:
        hf: Name of the tensor.
        mpt: The MPT's complete settings.
        numbers: The Hugging Face model's multipliers.
    """
    scale = 1.0
    if hf == 'lm_head.weight':
        scale = 1 / (_number(mpt) * numbers.get('logits_scaling', 1.0))
    elif hf == 'model.embed_tokens.weight':
        scale = numbers.get('embedding_multiplier', 1.0)
    elif hf.endswith(('o_proj.weight', 'mlp.down_proj.weight')):
        scale = numbers.get('residual_multiplier', 1.0)
    elif hf.endswith('q_proj.weight') and 'attention_multiplier' in numbers:
        scale = numbers['attention_multiplier'] * mpt['head_dim']**0.5
    return 1.0 if math.isclose(scale, 1.0, rel_tol=1e-9) else scale


def _number(mpt: Mapping[str, Any]) -> float:
    scale = mpt['logit_scale']
    if scale == 'inv_sqrt_d_model':
        return mpt['d_model']**-0.5
    return 1.0 if scale is None else scale
