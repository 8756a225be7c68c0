"""The one table of where a Hugging Face tensor lies inside an MPT tensor.

Shapes: D d_model, V vocabulary, H head_dim, Q heads * H, K key-value heads *
H, F hidden size of a feed-forward layer or of one expert, E experts, S hidden size
of a shared expert.
"""

import re
from dataclasses import dataclass
from typing import Any, Iterator, Mapping

import torch

from foundry_upcycle.checkpoints.huggingface.architectures import (
    ARCHITECTURES,
    SHARED_EXPERT_SIZE,
)
from foundry_upcycle.checkpoints.huggingface.folding import factor
from foundry_upcycle.checkpoints.huggingface.own import MPT, own_shapes
from foundry_upcycle.checkpoints.names import EXPERT_WEIGHTS
from foundry_upcycle.checkpoints.settings import complete

__all__ = ['Part', 'hf_shapes', 'mpt_shapes', 'parts', 'zero_shapes']

_Row = tuple[str, str, str]

# Hugging Face name, MPT name, Hugging Face shape, of each tensor in a block.
# Tensors with one name, of either side, are stacked in it along dimension 0, in
# this order.
_ATTENTION: tuple[_Row, ...] = (
    ('input_layernorm.weight', 'norm_1.weight', 'D'),
    ('self_attn.q_proj.weight', 'attn.Wq.weight', 'QD'),
    ('self_attn.k_proj.weight', 'attn.Wk.weight', 'KD'),
    ('self_attn.v_proj.weight', 'attn.Wv.weight', 'KD'),
    ('self_attn.o_proj.weight', 'attn.out_proj.weight', 'DQ'),
)
_ATTENTION_BIAS: tuple[_Row, ...] = (
    ('self_attn.q_proj.bias', 'attn.Wq.bias', 'Q'),
    ('self_attn.k_proj.bias', 'attn.Wk.bias', 'K'),
    ('self_attn.v_proj.bias', 'attn.Wv.bias', 'K'),
)
_QK_NORM: tuple[_Row, ...] = (
    ('self_attn.q_norm.weight', 'attn.q_ln.weight', 'H'),
    ('self_attn.k_norm.weight', 'attn.k_ln.weight', 'H'),
)
_FFN_NORM: tuple[
    _Row, ...] = (('post_attention_layernorm.weight', 'norm_2.weight', 'D'), )
_DENSE: tuple[_Row, ...] = (
    ('mlp.gate_proj.weight', 'ffn.gate_proj.weight', 'FD'),
    ('mlp.up_proj.weight', 'ffn.up_proj.weight', 'FD'),
    ('mlp.down_proj.weight', 'ffn.down_proj.weight', 'DF'),
)

_HEAD = 'lm_head.weight'

# Architecture -> the tensors in which it stacks some of these.
_FUSED = {
    'phi3': {
        'self_attn.q_proj.weight': 'self_attn.qkv_proj.weight',
        'self_attn.k_proj.weight': 'self_attn.qkv_proj.weight',
        'self_attn.v_proj.weight': 'self_attn.qkv_proj.weight',
        'mlp.gate_proj.weight': 'mlp.gate_up_proj.weight',
        'mlp.up_proj.weight': 'mlp.gate_up_proj.weight',
    },
}

# Architecture -> its layer of experts, and how it calls their projections.
_QWEN_MOE = (
    'mlp',
    {
        'gate_proj': 'gate_proj',
        'up_proj': 'up_proj',
        'down_proj': 'down_proj',
    },
)
_MOE_NAMES = {
    'mixtral': (
        'block_sparse_moe',
        {
            'gate_proj': 'w1',
            'up_proj': 'w3',
            'down_proj': 'w2',
        },
    ),
    'qwen2_moe':
    _QWEN_MOE,
    'qwen3_moe':
    _QWEN_MOE,
}
_SHARED_EXPERT = {
    'mlp.shared_expert.gate_proj.weight': 'SD',
    'mlp.shared_expert.up_proj.weight': 'SD',
    'mlp.shared_expert.down_proj.weight': 'DS',
    'mlp.shared_expert_gate.weight': '1D',
}


@dataclass(frozen=True)
class Part:
    """Rows of a Hugging Face tensor that are rows of an MPT tensor.

    Attributes:
        hf: Name of the Hugging Face tensor.
        shape: Shape of these rows.
        mpt: Name of the MPT tensor.
        start: First row of the MPT tensor.
        stop: Row after the last.
        transposed: Whether it is stored transposed.
        scale: ``mpt = hf * scale + shift``, computed in float32.
        shift: See ``scale``.
        hf_start: First row of the Hugging Face tensor.
    """
    hf: str
    shape: tuple[int, ...]
    mpt: str
    start: int
    stop: int
    transposed: bool = False
    scale: float = 1.0
    shift: float = 0.0
    hf_start: int = 0

    @property
    def hf_stop(self) -> int:
        return self.hf_start + self.shape[0]

    @property
    def mpt_columns(self) -> tuple[int, ...]:
        """Shape of a row of the MPT tensor."""
        return self.shape[:1] if self.transposed else self.shape[1:]

    @property
    def is_affine(self) -> bool:
        return (self.scale, self.shift) != (1.0, 0.0)

    def dtype(self, stored: torch.dtype) -> torch.dtype:
        """Of the other side's tensor: at least float32 where it is computed."""
        if self.is_affine:
            return torch.promote_types(stored, torch.float32)
        return stored

    def to_mpt(self, tensor: torch.Tensor) -> torch.Tensor:
        """Values of the MPT tensor from those of this one, and its layout."""
        if self.is_affine:
            tensor = tensor.to(self.dtype(tensor.dtype))
            tensor = tensor * self.scale + self.shift
        return tensor.T if self.transposed else tensor

    def to_huggingface(self, tensor: torch.Tensor) -> torch.Tensor:
        """The inverse of ``to_mpt``."""
        if self.is_affine:
            tensor = tensor.to(self.dtype(tensor.dtype))
            tensor = (tensor - self.shift) / self.scale
        return tensor.T if self.transposed else tensor


def parts(
    mpt_config: Mapping[str, Any],
    model_type: str,
    multipliers: Mapping[str, float] = {},  # noqa: B006
) -> list[Part]:
    """All tensors of a Hugging Face model, in its order.

    Each row of each MPT tensor is in exactly one part, but that a tied
    embedding is in two where the architecture needs a head of its own.

    Args:
        mpt_config: The model's MPT settings, nested.
        model_type: A key of ``ARCHITECTURES`` that can hold the model, or
            MPT's own.
        multipliers: What the Hugging Face model multiplies or divides by, and
            the MPT has in its weights.
    """
    if model_type == MPT:
        return _own_parts(mpt_config)
    mpt = complete(mpt_config)
    sizes = _sizes(mpt)
    filled: dict[str, int] = {}
    hf_filled: dict[str, int] = {}
    found = []
    for hf, name, letters in _rows(mpt, model_type):
        shape = tuple(sizes[letter] for letter in letters)
        transposed = name.endswith('.w2')
        start = 0 if hf == _HEAD else filled.get(name, 0)
        filled[name] = stop = start + shape[1 if transposed else 0]
        hf_start = hf_filled.get(hf, 0)
        hf_filled[hf] = hf_start + shape[0]
        scale, shift = _affine(hf, mpt, model_type, multipliers)
        found.append(
            Part(
                hf,
                shape,
                name,
                start,
                stop,
                transposed,
                scale,
                shift,
                hf_start,
            ),
        )
    return found


def _own_parts(mpt_config: Mapping[str, Any]) -> list[Part]:
    return [
        Part(name.removeprefix('model.'), shape, name, 0, shape[0])
        for name, shape in own_shapes(mpt_config).items()
    ]


def mpt_shapes(of: list[Part]) -> dict[str, tuple[int, ...]]:
    """Shapes of the MPT tensors that the parts make up."""
    # The last part of a tensor stops at its last row.
    return {part.mpt: (part.stop, *part.mpt_columns) for part in of}


def hf_shapes(of: list[Part]) -> dict[str, tuple[int, ...]]:
    """Shapes of the Hugging Face tensors that the parts make up."""
    return {part.hf: (part.hf_stop, *part.shape[1:]) for part in of}


def zero_shapes(
    mpt_config: Mapping[str, Any],
    model_type: str,
) -> dict[str, tuple[int, ...]]:
    """Tensors that the architecture wants, zero, for what MPT has not."""
    mpt = complete(mpt_config)
    if not ARCHITECTURES[model_type].has_shared_expert:
        return {}
    sizes = _sizes(mpt)
    return {
        f'model.layers.{layer}.{name}': tuple(sizes[i]
                                              for i in letters)
        for layer in _moe_layers(mpt)
        for name, letters in _SHARED_EXPERT.items()
    }


def _sizes(mpt: Mapping[str, Any]) -> dict[str, int]:
    head_dim = mpt['head_dim']
    return {
        '1': 1,
        'D': mpt['d_model'],
        'V': mpt['vocab_size'],
        'H': head_dim,
        'Q': head_dim * mpt['n_heads'],
        'K': head_dim * mpt['attn_config.kv_n_heads'],
        'F': mpt['ffn_config.ffn_hidden_size'],
        'E': mpt.get('ffn_config.moe_num_experts', 0),
        'S': SHARED_EXPERT_SIZE,
    }


def _moe_layers(mpt: Mapping[str, Any]) -> list[int]:
    if mpt['ffn_config.ffn_type'] != 'upcycled_dmoe':
        return []
    return mpt['ffn_config.moe_layers'] or [*range(mpt['n_layers'])]


def _rows(mpt: Mapping[str, Any], model_type: str) -> Iterator[_Row]:
    yield 'model.embed_tokens.weight', 'model.transformer.wte.weight', 'VD'
    moe_layers = {*_moe_layers(mpt)}
    blocks = {
        is_moe: [*_attention_rows(mpt, model_type)] +
        [*_ffn_rows(mpt, model_type, is_moe)]
        for is_moe in (False, True)
        if not is_moe or moe_layers
    }
    for layer in range(mpt['n_layers']):
        for hf, name, shape in blocks[layer in moe_layers]:
            yield (
                f'model.layers.{layer}.{hf}',
                f'model.transformer.blocks.{layer}.{name}',
                shape,
            )
    yield 'model.norm.weight', 'model.transformer.norm_f.weight', 'D'
    if not mpt['tie_word_embeddings']:
        yield _HEAD, 'model.lm_head.weight', 'VD'
    elif ARCHITECTURES[model_type].unties(mpt['logit_scale']):
        yield _HEAD, 'model.transformer.wte.weight', 'VD'


def _attention_rows(mpt: Mapping[str, Any], model_type: str) -> Iterator[_Row]:
    attention: list[_Row] = [*_ATTENTION]
    if mpt['attention_bias']:
        attention += _ATTENTION_BIAS
    if mpt['attn_config.qk_gn']:
        attention += _QK_NORM
    fused = _FUSED.get(model_type, {})
    for hf, name, shape in attention:
        if mpt['attn_config.fused_qkv']:
            name = re.sub(r'attn\.W[qkv]\.', 'attn.Wqkv.', name)
        yield fused.get(hf, hf), name, shape
    yield from _FFN_NORM


def _ffn_rows(
    mpt: Mapping[str, Any],
    model_type: str,
    is_moe: bool,
) -> Iterator[_Row]:
    if not is_moe:
        fused = _FUSED.get(model_type, {})
        yield from ((fused.get(hf, hf), *rest) for hf, *rest in _DENSE)
        return
    layer, projections = _MOE_NAMES[model_type]
    yield f'{layer}.gate.weight', 'ffn.router.layer.weight', 'ED'
    for expert in range(mpt['ffn_config.moe_num_experts']):
        for weight, (dense, transposed) in EXPERT_WEIGHTS['glu'].items():
            yield (
                f'{layer}.experts.{expert}.{projections[dense]}.weight',
                f'ffn.experts.mlp.{weight}',
                'DF' if transposed else 'FD',
            )


def _affine(
    hf: str,
    mpt: Mapping[str, Any],
    model_type: str,
    multipliers: Mapping[str, float],
) -> tuple[float, float]:
    """Scale and shift of a tensor, which most architectures have not."""
    architecture = ARCHITECTURES[model_type]
    if architecture.is_gemma:
        if hf == 'model.embed_tokens.weight':
            return mpt['d_model']**0.5, 0.0
        return 1.0, float(hf.endswith('norm.weight'))
    return factor(hf, mpt, multipliers), 0.0
