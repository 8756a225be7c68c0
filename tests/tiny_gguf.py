"""Tiny GGUF files, written as llama.cpp's converter writes them."""

from pathlib import Path
from typing import Any, Mapping

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

N_HEADS, N_KV_HEADS, HEAD_DIM = 4, 2, 16
NORM_EPS = float(np.float32(1e-5))

# Ġ is the space, as in all byte-level vocabularies.
MERGES = ['t h', 'th e', 'Ġ the', '1 2', '12 3', 'a b', 'ab c', 'x ab']
SPECIAL = ['<|endoftext|>', '<|start|>', '<|end|>']
USER_DEFINED = ['<tool>']
# A token that no merge makes.
WHOLE = ['xyz']
TOKENS = [
    *SPECIAL,
    *USER_DEFINED,
    *sorted(ByteLevel.alphabet()),
    *(merge.replace(' ', '') for merge in MERGES),
    *WHOLE,
]
TOKEN_TYPES = [3] * 3 + [4] + [1] * (len(TOKENS) - 4)

SIZES = {
    'vocab_size': len(TOKENS),
    'hidden_size': N_HEADS * HEAD_DIM,
    'intermediate_size': 96,
    'num_hidden_layers': 2,
    'num_attention_heads': N_HEADS,
    'num_key_value_heads': N_KV_HEADS,
    'max_position_embeddings': 64,
    'rms_norm_eps': NORM_EPS,
    'rope_theta': 5000.0,
}

CLASSES = {
    'llama': (LlamaForCausalLM, LlamaConfig),
    'qwen2': (Qwen2ForCausalLM, Qwen2Config),
    'qwen3': (Qwen3ForCausalLM, Qwen3Config),
}

# Module of transformers -> of GGUF.
LAYER_NAMES = {
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'self_attn.q_norm': 'attn_q_norm',
    'self_attn.k_norm': 'attn_k_norm',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
}
NAMES = {
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'lm_head': 'output',
    **{
        f'model.layers.{i}.{hf}': f'blk.{i}.{name}'
        for i in range(2)
        for hf, name in LAYER_NAMES.items()
    },
}


def build(architecture: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model_class, config_class = CLASSES[architecture]
    sizes = {**SIZES, 'head_dim': HEAD_DIM, **changes}
    model = model_class(config_class(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the halves of each head are interleaved."""
    halves = weight.reshape(n_heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path,
    architecture: str = 'llama',
    tied: bool = True,
    tensors: Mapping[str, np.ndarray] = {},  # noqa: B006
    sizes: Mapping[str, Any] = {},  # noqa: B006
    parts: int = 0,
    **changes: Any,
) -> PreTrainedModel:
    """Writes a random model and a tokenizer.

    Args:
        file: Where.
        architecture: Of the model.
        tied: Whether the embedding is the output layer.
        tensors: More tensors.
        sizes: Of the model, as transformers calls them, beside ``SIZES``.
        parts: Most tensors of a file, if it is to be split.
        changes: Metadata, their dots written as `__`; None leaves one out.

    Returns:
        The model, as transformers has it.
    """
    model = build(architecture, tie_word_embeddings=tied, **sizes)
    writer = gguf.GGUFWriter(file, architecture, split_max_tensors=parts)
    writer.add_name('tiny')
    add_fields(writer, architecture, model.config, changes)
    for name, tensor in model.state_dict().items():
        if tied and name == 'lm_head.weight':
            continue
        module, kind = name.rsplit('.', 1)
        array = tensor.numpy()
        if architecture == 'llama' and module.endswith(('q_proj', 'k_proj')):
            is_query = module.endswith('q_proj')
            array = permuted(array, N_HEADS if is_query else N_KV_HEADS)
        writer.add_tensor(f'{NAMES[module]}.{kind}', array)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    finish(writer)
    return model


def add_fields(
    writer: gguf.GGUFWriter,
    architecture: str,
    config: Any,
    changes: Mapping[str, Any],
) -> None:
    fields = {
        'block_count': 2,
        'context_length': config.max_position_embeddings,
        'embedding_length': config.hidden_size,
        'feed_forward_length': 96,
        'attention.head_count': N_HEADS,
        'attention.head_count_kv': N_KV_HEADS,
        'attention.layer_norm_rms_epsilon': NORM_EPS,
        'rope.freq_base': config.rope_theta,
        'rope.dimension_count': config.head_dim,
        'attention.key_length': config.head_dim,
        'attention.value_length': config.head_dim,
    }
    fields = {f'{architecture}.{name}': value for name, value in fields.items()}
    fields |= {
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': 'smollm',
        'tokenizer.ggml.tokens': TOKENS,
        'tokenizer.ggml.token_type': TOKEN_TYPES,
        'tokenizer.ggml.merges': MERGES,
        'tokenizer.ggml.bos_token_id': 1,
        'tokenizer.ggml.eos_token_id': 2,
        'tokenizer.ggml.padding_token_id': 2,
        'tokenizer.ggml.unknown_token_id': 0,
    }
    fields |= {name.replace('__', '.'): v for name, v in changes.items()}
    for name, value in fields.items():
        add_field(writer, name, value)


def add_field(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    elif value is not None:
        writer.add_array(name, value)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
