"""The Hugging Face architectures that MPT expresses, as tables.

Both directions of the translation read them, so what one side computes and the
other can't express is named in one place.
"""

from dataclasses import dataclass, field
from typing import Any, Mapping, Optional

from foundry_upcycle.checkpoints.huggingface.refused import RELATIVES
from foundry_upcycle.errors import ConfigError

__all__ = [
    'ACTIVATIONS',
    'ACTIVATION_ALIASES',
    'ARCHITECTURES',
    'Architecture',
    'KINDS',
    'NORMALIZE',
    'OTHER_KEYS',
    'ROPE_TYPES',
    'SIZES',
    'SHARED_EXPERT_SIZE',
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
_PHI3_FIELDS = {
    **_DENSE_FIELDS,
    'resid_pdrop': 'resid_pdrop',
    'embd_pdrop': 'emb_pdrop',
}
_QWEN_MOE_FIELDS = {
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

# Of the zeros that are written where an architecture wants a shared expert:
# small, and what kernels and several GPUs can divide.
SHARED_EXPERT_SIZE = 64


@dataclass(frozen=True)
class Architecture:
    """What makes a Hugging Face architecture more than a plain Llama.

    Attributes:
        class_name: The model's class in transformers.
        settings: MPT settings in which it differs from ``_SETTINGS``.
        fields: Its own keys -> MPT keys, beside ``_FIELDS``.
        window_keys: Keys that describe its sliding window, if it has one.
        multipliers: Keys of numbers that it multiplies or divides by.
        layer_keys: Keys that say in which layers it differs from the others.
        refused: Beside those of ``REFUSED``, in the same form.
        config_of: An architecture with the same config, where the transformers
            of LLM Foundry does not know this one.
        defaults: Its defaults, where they are not those of ``config_of``.
        is_gemma: Whether it multiplies embeddings by sqrt(D) and norms by
            weight + 1.
    """
    class_name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=lambda: _DENSE_FIELDS)
    window_keys: tuple[str, ...] = ()
    multipliers: tuple[str, ...] = ()
    layer_keys: tuple[str, ...] = ()
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    config_of: Optional[str] = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
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

    @property
    def has_dense_layers(self) -> bool:
        """Whether it may have experts in some layers only."""
        return 'mlp_only_layers' in self.layer_keys

    @property
    def has_layers_without_rope(self) -> bool:
        return 'no_rope_layers' in self.layer_keys

    @property
    def has_shared_expert(self) -> bool:
        """Whether it wants one; that of a model that MPT expresses is zero."""
        return self.class_name == 'Qwen2MoeForCausalLM'

    def logit_scale(self, is_tied: bool) -> Optional[str]:
        """MPT's ``logit_scale``; a tied embedding holds Gemma's factor."""
        return 'inv_sqrt_d_model' if self.is_gemma and is_tied else None

    def unties(self, logit_scale: Any) -> bool:
        """Whether a tied embedding needs a head of its own beside it.

        Of what serves mixtures nothing scales logits: the head has to.
        """
        return self.is_moe and logit_scale is not None


_DENSE_LAYERS = ('mlp_only_layers', 'decoder_sparse_step', 'intermediate_size')

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
    'phi3':
    Architecture(
        'Phi3ForCausalLM',
        fields=_PHI3_FIELDS,
        window_keys=('sliding_window', ),
    ),
    'granite':
    Architecture(
        'GraniteForCausalLM',
        multipliers=(
            'embedding_multiplier',
            'attention_multiplier',
            'residual_multiplier',
            'logits_scaling',
        ),
    ),
    'smollm3':
    Architecture(
        'SmolLM3ForCausalLM',
        layer_keys=('no_rope_layers', 'no_rope_layer_interval'),
        refused={
            'use_sliding_window':
            (False, 'only layers without rope have a sliding window'),
        },
        config_of='llama',
        defaults={
            'vocab_size': 128256,
            'hidden_size': 2048,
            'num_hidden_layers': 36,
            'num_attention_heads': 16,
            'num_key_value_heads': 4,
            'max_position_embeddings': 32768,
            'rope_theta': 2000000.0,
            'tie_word_embeddings': True,
            'no_rope_layers': None,
            'no_rope_layer_interval': 4,
            'use_sliding_window': False,
            'sliding_window': None,
            'max_window_layers': None,
        },
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
    'qwen2_moe':
    Architecture(
        'Qwen2MoeForCausalLM',
        {
            **_MOE, 'attention_bias': True
        },
        _QWEN_MOE_FIELDS,
        window_keys=_SWITCHED_WINDOW,
        layer_keys=_DENSE_LAYERS,
    ),
    'qwen3_moe':
    Architecture(
        'Qwen3MoeForCausalLM',
        {
            **_MOE, 'attn_config.qk_gn': True
        },
        _QWEN_MOE_FIELDS,
        window_keys=_SWITCHED_WINDOW,
        layer_keys=_DENSE_LAYERS,
    ),
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
    *(_FIELDS.keys() | _MIXTRAL_FIELDS.keys() | _QWEN_MOE_FIELDS.keys()),
    *('head_dim', 'decoder_sparse_step', 'no_rope_layer_interval'),
} - {'tie_word_embeddings', 'rms_norm_eps', 'rope_theta', 'attention_dropout'}

# Of other keys: what their values are -> the keys.
KINDS = {
    'a number above 0': {'rms_norm_eps', 'rope_theta'},
    'a share from 0 to 1': {'attention_dropout', 'embd_pdrop', 'resid_pdrop'},
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
    return RELATIVES.get(str(model_type))


def get_architecture(model_type: Any) -> Architecture:
    if str(model_type) in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    feature = missing_feature(model_type)
    raise ConfigError(
        'model_type',
        model_type,
        f'it cannot be carried over: {feature}.'
        if feature else 'this architecture is not known.',
        f'use one of {", ".join(ARCHITECTURES)}, or an MPT.',
    )


def accepted_activations(architecture: Architecture) -> list[str]:
    if architecture.is_moe:
        return ['silu']
    if architecture.is_gemma:
        return ['gelu_pytorch_tanh']
    return [*ACTIVATIONS]
