"""The Hugging Face architectures that MPT expresses, as tables.

Both directions of the translation read them, so what one side computes and the
other can't express is named in one place.
"""

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional

from foundry_upcycle.errors import ConfigError

__all__ = [
    'ACTIVATIONS',
    'ACTIVATION_ALIASES',
    'ARCHITECTURES',
    'Architecture',
    'KINDS',
    'NORMALIZE',
    'OTHER_KEYS',
    'REFUSED',
    'ROPE_TYPES',
    'SIZES',
    'TOKEN_IDS',
    'UNSUPPORTED',
    'accepted_activations',
    'get_architecture',
    'missing_feature',
]

# Hugging Face key -> MPT key, where the values are the same.
_FIELDS = {
    'vocab_size': 'vocab_size',
    'hidden_size': 'd_model',
    'num_hidden_layers': 'n_layers',
    'num_attention_heads': 'n_heads',
    'num_key_value_heads': 'attn_config.kv_n_heads',
    'max_position_embeddings': 'max_seq_len',
    'tie_word_embeddings': 'tie_word_embeddings',
    'rms_norm_eps': 'norm_eps',
    'rope_theta': 'attn_config.rope_theta',
    'attention_dropout': 'attn_config.attn_pdrop',
}
_DENSE_FIELDS = {'intermediate_size': 'ffn_config.ffn_hidden_size'}
_MIXTRAL_FIELDS = {
    'intermediate_size': 'ffn_config.ffn_hidden_size',
    'num_local_experts': 'ffn_config.moe_num_experts',
    'num_experts_per_tok': 'ffn_config.moe_top_k',
}
_QWEN3_MOE_FIELDS = {
    'moe_intermediate_size': 'ffn_config.ffn_hidden_size',
    'num_experts': 'ffn_config.moe_num_experts',
    'num_experts_per_tok': 'ffn_config.moe_top_k',
}

# MPT settings of every architecture that does not say otherwise.
_SETTINGS = {
    'norm_type': 'rmsnorm',
    'no_bias': True,
    'attention_bias': False,
    'learned_pos_emb': False,
    'attn_config.rope': True,
    'attn_config.qk_gn': False,
    'ffn_config.ffn_type': 'mptglu',
}
NORMALIZE = 'ffn_config.moe_normalize_expert_weights'
_MOE = {
    'ffn_config.ffn_type': 'upcycled_dmoe',
    'ffn_config.mlp_type': 'glu',
}

# What MPT can do and no architecture here: the value that turns it off.
UNSUPPORTED = {
    'block_overrides': None,
    'final_logit_softcapping': None,
    'attn_config.alibi': False,
    'attn_config.attn_logit_softcapping': None,
    'attn_config.attn_temperature_tuning.attn_scale': 0.0,
    'attn_config.clip_qkv': None,
    'attn_config.kv_dim': None,
    'attn_config.nope': False,
    'attn_config.qk_ln': False,
    'attn_config.reuse_kv_layer_idx': None,
    'attn_config.reuse_kv_x_layer_idx': None,
    'ffn_config.moe_layers': None,
    'ffn_config.uniform_expert_assignment': False,
}

_SWITCHED_WINDOW = ('use_sliding_window', 'sliding_window', 'max_window_layers')


@dataclass(frozen=True)
class Architecture:
    """What makes a Hugging Face architecture more than a plain Llama.

    Attributes:
        class_name: The model's class in transformers.
        settings: MPT settings in which it differs from ``_SETTINGS``.
        fields: Its own keys -> MPT keys, beside ``_FIELDS``.
        window_keys: Keys that describe its sliding window, if it has one.
        is_gemma: Whether it multiplies embeddings by sqrt(D) and norms by
            weight + 1.
    """
    class_name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=lambda: _DENSE_FIELDS)
    window_keys: tuple[str, ...] = ()
    is_gemma: bool = False

    @property
    def all_settings(self) -> dict[str, Any]:
        return {**_SETTINGS, **self.settings}

    @property
    def all_fields(self) -> dict[str, str]:
        return {**_FIELDS, **self.fields}

    @property
    def is_moe(self) -> bool:
        return 'ffn_config.moe_num_experts' in self.fields.values()

    def logit_scale(self, is_tied: bool) -> Optional[str]:
        """MPT's ``logit_scale``; a tied embedding holds Gemma's factor."""
        return 'inv_sqrt_d_model' if self.is_gemma and is_tied else None


ARCHITECTURES = {
    'llama':
    Architecture('LlamaForCausalLM'),
    'mistral':
    Architecture('MistralForCausalLM', window_keys=('sliding_window', )),
    'qwen2':
    Architecture(
        'Qwen2ForCausalLM',
        {'attention_bias': True},
        window_keys=_SWITCHED_WINDOW,
    ),
    'qwen3':
    Architecture(
        'Qwen3ForCausalLM',
        {'attn_config.qk_gn': True},
        window_keys=_SWITCHED_WINDOW,
    ),
    'gemma':
    Architecture('GemmaForCausalLM', is_gemma=True),
    'mixtral':
    Architecture(
        'MixtralForCausalLM',
        {
            **_MOE, NORMALIZE: 1
        },
        _MIXTRAL_FIELDS,
        window_keys=('sliding_window', ),
    ),
    'qwen3_moe':
    Architecture(
        'Qwen3MoeForCausalLM',
        {
            **_MOE, 'attn_config.qk_gn': True
        },
        _QWEN3_MOE_FIELDS,
        window_keys=_SWITCHED_WINDOW,
    ),
}

# Well-known architectures, and what MPT lacks for them.
_RELATIVES = {
    'cohere': 'LayerNorm and parallel blocks',
    'deepseek_v3': 'latent attention and shared experts',
    'gemma2': 'norms after attention and feed-forward, and soft-capping',
    'gemma3': 'norms after attention and feed-forward',
    'gemma3_text': 'norms after attention and feed-forward',
    'granite': 'multipliers of residuals and attention',
    'llama4': 'interleaved chunked attention',
    'olmo2': 'norms after attention and feed-forward',
    'phi3': 'fused gate and up projections',
    'qwen2_moe': 'a shared expert',
}

# Keys whose other values MPT can't express: the one it can, and the feature.
REFUSED = {
    'attention_bias': (False, 'the attention output projection has a bias'),
    'mlp_bias': (False, 'the feed-forward layers have biases'),
    'partial_rotary_factor': (1, 'only a part of each head is rotated'),
    'attn_logit_softcapping': (None, 'attention logits are capped'),
    'final_logit_softcapping': (None, 'logits are capped'),
    'quantization_config': (None, 'the weights are quantised'),
    'decoder_sparse_step': (1, 'some layers are dense, others experts'),
    'mlp_only_layers': ([], 'some layers are dense, others experts'),
}

# Keys that no default config lists and that change nothing, or are read here.
OTHER_KEYS = {
    '_attn_implementation',
    'attn_logit_softcapping',
    'auto_map',
    'dtype',
    'final_logit_softcapping',
    'head_dim',
    'layer_types',
    'mlp_bias',
    'partial_rotary_factor',
    'quantization_config',
    'rope_parameters',
    'rope_scaling',
    'unsloth_version',
}

# Hugging Face rope type -> MPT's, and the settings that both call the same.
ROPE_TYPES = {
    'default': ('no_scaling', ()),
    'linear': ('linear', ('factor', )),
    'llama3': (
        'llama3',
        (
            'factor',
            'low_freq_factor',
            'high_freq_factor',
            'original_max_position_embeddings',
        ),
    ),
}

# Hugging Face activation -> name and, for gelu, approximation of MPT's.
ACTIVATIONS = {
    'silu': ('silu', None),
    'gelu': ('gelu', 'none'),
    'gelu_pytorch_tanh': ('gelu', 'tanh'),
    'quick_gelu': ('quick_gelu', None),
    'relu': ('relu', None),
}
ACTIVATION_ALIASES = {'swish': 'silu'}

# Keys whose values are whole numbers from 1.
SIZES = {
    *(_FIELDS.keys() | _MIXTRAL_FIELDS.keys() | _QWEN3_MOE_FIELDS.keys()),
    'head_dim',
} - {'tie_word_embeddings', 'rms_norm_eps', 'rope_theta', 'attention_dropout'}

# Of other keys: what their values are -> the keys.
KINDS = {
    'a number above 0': {'rms_norm_eps', 'rope_theta'},
    'a share from 0 to 1': {'attention_dropout'},
    'a whole number from 0': {'max_window_layers'},
    'true or false': {
        'norm_topk_prob',
        'tie_word_embeddings',
        'use_sliding_window',
    },
    'a text': {'hidden_act'},
}

TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')


def missing_feature(model_type: Any) -> Optional[str]:
    """What MPT lacks for a well-known architecture; None if it is not one."""
    return _RELATIVES.get(str(model_type))


def get_architecture(model_type: Any) -> Architecture:
    if str(model_type) in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    feature = missing_feature(model_type)
    raise ConfigError(
        'model_type',
        model_type,
        f'MPT has no counterpart to {feature}.'
        if feature else 'this architecture is not known.',
        f'use one of {", ".join(ARCHITECTURES)}.',
    )


def accepted_activations(architecture: Architecture) -> list[str]:
    if architecture.is_moe:
        return ['silu']
    if architecture.is_gemma:
        return ['gelu_pytorch_tanh']
    return [*ACTIVATIONS]
