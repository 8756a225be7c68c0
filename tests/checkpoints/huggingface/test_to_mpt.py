import warnings
from typing import Any

import pytest

from foundry_upcycle.checkpoints.huggingface.to_huggingface import (
    to_huggingface,
)
from foundry_upcycle.checkpoints.huggingface.to_mpt import to_mpt
from foundry_upcycle.errors import ConfigError, UpcyclingWarning

# As published.
LLAMA_3_8B: dict[str, Any] = {
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': False,
    'attention_dropout': 0.0,
    'bos_token_id': 128000,
    'eos_token_id': 128001,
    'hidden_act': 'silu',
    'hidden_size': 4096,
    'initializer_range': 0.02,
    'intermediate_size': 14336,
    'max_position_embeddings': 8192,
    'model_type': 'llama',
    'num_attention_heads': 32,
    'num_hidden_layers': 32,
    'num_key_value_heads': 8,
    'pretraining_tp': 1,
    'rms_norm_eps': 1e-05,
    'rope_scaling': None,
    'rope_theta': 500000.0,
    'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.40.0.dev0',
    'use_cache': True,
    'vocab_size': 128256,
}
LLAMA3_ROPE = {
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
}
QWEN2_05B: dict[str, Any] = {
    'architectures': ['Qwen2ForCausalLM'],
    'attention_dropout': 0.0,
    'bos_token_id': 151643,
    'eos_token_id': 151643,
    'hidden_act': 'silu',
    'hidden_size': 896,
    'initializer_range': 0.02,
    'intermediate_size': 4864,
    'max_position_embeddings': 131072,
    'max_window_layers': 24,
    'model_type': 'qwen2',
    'num_attention_heads': 14,
    'num_hidden_layers': 24,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-06,
    'rope_theta': 1000000.0,
    'sliding_window': 131072,
    'tie_word_embeddings': True,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.40.1',
    'use_cache': True,
    'use_sliding_window': False,
    'vocab_size': 151936,
}
MISTRAL_7B: dict[str, Any] = {
    'architectures': ['MistralForCausalLM'],
    'bos_token_id': 1,
    'eos_token_id': 2,
    'hidden_act': 'silu',
    'hidden_size': 4096,
    'initializer_range': 0.02,
    'intermediate_size': 14336,
    'max_position_embeddings': 32768,
    'model_type': 'mistral',
    'num_attention_heads': 32,
    'num_hidden_layers': 32,
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-05,
    'rope_theta': 10000.0,
    'sliding_window': 4096,
    'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.34.0.dev0',
    'use_cache': True,
    'vocab_size': 32000,
}
UNSCALED = {'type': 'no_scaling', 'factor': 1.0}
# What each published model is in MPT, beside what all of them are.
PUBLISHED = {
    'Llama-3-8B': (
        LLAMA_3_8B,
        {
            'd_model': 4096,
            'n_heads': 32,
            'n_layers': 32,
            'vocab_size': 128256
        },
        {
            'max_seq_len': 8192,
            'norm_eps': 1e-5,
            'tie_word_embeddings': False
        },
        {
            'kv_n_heads': 8,
            'rope_theta': 500000,
            'sliding_window_size': -1
        },
        {
            'ffn_hidden_size': 14336
        },
        UNSCALED,
        False,
    ),
    'Llama-3.1-8B': (
        {
            **LLAMA_3_8B,
            'max_position_embeddings': 131072,
            'rope_scaling': LLAMA3_ROPE,
            'mlp_bias': False,
            'eos_token_id': [128001, 128008, 128009],
        },
        {
            'd_model': 4096,
            'n_heads': 32,
            'n_layers': 32,
            'vocab_size': 128256
        },
        {
            'max_seq_len': 131072,
            'norm_eps': 1e-5,
            'tie_word_embeddings': False
        },
        {
            'kv_n_heads': 8,
            'rope_theta': 500000,
            'sliding_window_size': -1
        },
        {
            'ffn_hidden_size': 14336
        },
        {
            'type': 'llama3',
            'factor': 8.0,
            'low_freq_factor': 1.0,
            'high_freq_factor': 4.0,
            'original_max_position_embeddings': 8192,
        },
        False,
    ),
    'Qwen2-0.5B': (
        QWEN2_05B,
        {
            'd_model': 896,
            'n_heads': 14,
            'n_layers': 24,
            'vocab_size': 151936
        },
        {
            'max_seq_len': 131072,
            'norm_eps': 1e-6,
            'tie_word_embeddings': True
        },
        {
            'kv_n_heads': 2,
            'rope_theta': 1000000,
            'sliding_window_size': -1
        },
        {
            'ffn_hidden_size': 4864
        },
        UNSCALED,
        True,
    ),
    'Mistral-7B-v0.1': (
        MISTRAL_7B,
        {
            'd_model': 4096,
            'n_heads': 32,
            'n_layers': 32,
            'vocab_size': 32000
        },
        {
            'max_seq_len': 32768,
            'norm_eps': 1e-5,
            'tie_word_embeddings': False
        },
        # 4,096 tokens with the token itself.
        {
            'kv_n_heads': 8,
            'rope_theta': 10000,
            'sliding_window_size': 4095
        },
        {
            'ffn_hidden_size': 14336
        },
        UNSCALED,
        False,
    ),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_models(name):
    hf, sizes, rest, attn, ffn, rope, attention_bias = PUBLISHED[name]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        section = to_mpt(hf)
    assert section == {
        **sizes,
        **rest,
        'no_bias': True,
        'attention_bias': attention_bias,
        'learned_pos_emb': False,
        'logit_scale': None,
        'norm_type': 'rmsnorm',
        'attn_config': {
            **attn,
            'attn_type': 'grouped_query_attention',
            'attn_impl': 'torch',
            'attn_pdrop': 0.0,
            'softmax_scale': (sizes['d_model'] / sizes['n_heads'])**-0.5,
            'fused_qkv': True,
            'qk_gn': False,
            'rope': True,
            'rope_impl': 'hf',
            'rope_hf_config': rope,
        },
        'ffn_config': {
            **ffn,
            'ffn_type': 'mptglu',
            'ffn_act_fn': {
                'name': 'silu',
            },
        },
    }
    back = to_huggingface(section)
    ignored = {'torch_dtype', 'transformers_version', 'use_cache'}
    ignored |= {'initializer_range', 'pretraining_tp', 'mlp_bias'}
    ignored |= {'bos_token_id', 'eos_token_id', 'attention_bias'}
    ignored |= {'sliding_window'} if name.startswith('Qwen2') else set()
    kept = {key: value for key, value in hf.items() if key not in ignored}
    assert {key: back[key] for key in kept} == kept


def test_both_styles_of_transformers_are_one():
    style_5 = {k: v for k, v in LLAMA_3_8B.items() if not k.startswith('rope')}
    style_5['dtype'] = style_5.pop('torch_dtype')
    style_5['head_dim'] = None
    rope = {**LLAMA3_ROPE, 'rope_theta': 500000.0, 'partial_rotary_factor': 1}
    style_5['rope_parameters'] = rope
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        section = to_mpt(style_5)
    assert section == to_mpt({**LLAMA_3_8B, 'rope_scaling': LLAMA3_ROPE})
    legacy = {'type': 'linear', 'factor': 2.0}
    rope = {'rope_type': 'linear', 'factor': 2.0}
    expected = to_mpt({**LLAMA_3_8B, 'rope_scaling': rope})
    assert to_mpt({**LLAMA_3_8B, 'rope_scaling': legacy}) == expected
    default = {'type': 'default', 'factor': 3.0}
    expected = to_mpt(LLAMA_3_8B)
    assert to_mpt({**LLAMA_3_8B, 'rope_scaling': default}) == expected


def test_transformers_5_calls_all_experts_local():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        hf = {'model_type': 'qwen3_moe', 'num_local_experts': 9}
        assert to_mpt(hf)['ffn_config']['moe_num_experts'] == 9
    expected = to_mpt({'model_type': 'qwen3_moe', 'num_experts': 9})
    assert to_mpt(hf) == expected


@pytest.mark.parametrize(
    'model_type,heads,kv_heads,head_dim',
    [
        ('llama', 32, 32, None),
        ('mistral', 32, 8, None),
        ('qwen3', 32, 32, None),  # 128, which is also D / heads.
        ('gemma', 16, 16, 256),  # D / heads would be 192.
        ('mixtral', 32, 8, None),
        ('qwen3_moe', 32, 4, None),
    ],
)
def test_missing_keys_are_transformers_defaults(
    model_type,
    heads,
    kv_heads,
    head_dim,
):
    section = to_mpt({'model_type': model_type})
    assert section['n_heads'] == heads
    assert section['attn_config']['kv_n_heads'] == kv_heads
    assert section.get('head_dim') == head_dim


def test_defaults_that_follow_from_other_keys():
    section = to_mpt({'model_type': 'llama', 'num_attention_heads': 8})
    assert section['attn_config']['kv_n_heads'] == 8
    assert 'head_dim' not in section


# What they say beside sizes.
OTHERS: dict[str, dict[str, Any]] = {
    'Phi-4': {
        'model_type': 'phi3',
        'attention_bias': False,
        'embd_pdrop': 0.0,
        'original_max_position_embeddings': 16384,
        'resid_pdrop': 0.0,
        'rope_scaling': None,
        'rope_theta': 250000,
        'sliding_window': None,
    },
    'Granite-3.1-2B': {
        'model_type': 'granite',
        'attention_bias': False,
        'attention_multiplier': 0.015625,
        'embedding_multiplier': 12.0,
        'logits_scaling': 8.0,
        'mlp_bias': False,
        'residual_multiplier': 0.22,
        'rope_theta': 5000000.0,
        'tie_word_embeddings': True,
    },
    'SmolLM3-3B': {
        'model_type': 'smollm3',
        'attention_bias': False,
        'layer_types': ['full_attention'] * 36,
        'max_window_layers': 28,
        'mlp_bias': False,
        'no_rope_layer_interval': 4,
        'no_rope_layers': [1, 1, 1, 0] * 9,
        'pretraining_tp': 2,
        'rope_theta': 5000000.0,
        'use_sliding_window': False,
    },
}


@pytest.mark.parametrize('name', OTHERS)
def test_nothing_is_said_of_what_published_models_say(name):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        section = to_mpt(OTHERS[name])
    assert section['attn_config']['rope_theta'] == OTHERS[name]['rope_theta']


def test_layers_without_rope():
    # As published of SmolLM3-3B: every fourth has none.
    hf = {'model_type': 'smollm3', 'no_rope_layers': [1, 1, 1, 0] * 9}
    section = to_mpt(hf)
    assert section == to_mpt({'model_type': 'smollm3'})
    assert section['block_overrides'] == {
        'order': [
            {
                'name': 'default',
                'repeat': 3,
            },
            {
                'name': 'no_rope',
                'repeat': 1,
            },
        ] * 9,
        'overrides': {
            'no_rope': {
                'attn_config': {
                    'nope': True,
                },
            },
        },
    }
    assert to_huggingface(section)['no_rope_layers'] == hf['no_rope_layers']
    hf['no_rope_layers'] = [1] * 36
    assert 'block_overrides' not in to_mpt(hf)


def test_layers_without_experts():
    hf = {
        'model_type': 'qwen3_moe',
        'num_hidden_layers': 6,
        'intermediate_size': 768,
        'moe_intermediate_size': 768,
        'decoder_sparse_step': 2,
        'mlp_only_layers': [3],
    }
    section = to_mpt(hf)
    assert section['ffn_config']['moe_layers'] == [1, 5]
    assert to_huggingface(section)['mlp_only_layers'] == [0, 2, 3, 4]


def test_the_factors_of_a_granite_are_the_logits_or_the_weights():
    hf = {
        'model_type': 'granite',
        'embedding_multiplier': 12.0,
        'logits_scaling': 8.0,
        'attention_multiplier': 0.015625,
    }
    section = to_mpt({**hf, 'tie_word_embeddings': True})
    assert section['logit_scale'] == pytest.approx(1 / 96)
    assert section['attn_config']['softmax_scale'] == 128**-0.5
    section = to_mpt({**hf, 'tie_word_embeddings': False})
    assert section['logit_scale'] is None


def test_a_head_size_of_its_own_needs_unfused_projections():
    section = to_mpt({**LLAMA_3_8B, 'head_dim': 64})
    assert section['head_dim'] == 64
    assert section['attn_config']['softmax_scale'] == 64**-0.5
    assert not section['attn_config']['fused_qkv']


def test_the_norm_of_queries_and_keys_is_the_models():
    attn = to_mpt({'model_type': 'qwen3', 'rms_norm_eps': 0.5})['attn_config']
    assert (attn['qk_gn'], attn['norm_type']) == (True, 'rmsnorm')
    assert attn['norm_eps'] == 0.5


def test_unknown_keys_are_named():
    hf = {**LLAMA_3_8B, 'use_qk_norm': True, 'nope_layers': [1], 'x': None}
    message = 'config.json has nope_layers, use_qk_norm, which'
    with pytest.warns(UserWarning, match=message):
        to_mpt(hf)


def test_whole_layers_may_be_given_by_kind():
    hf = {**QWEN2_05B, 'use_sliding_window': True, 'sliding_window': 8}
    for kind, size in (('full_attention', -1), ('sliding_attention', 7)):
        section = to_mpt({**hf, 'layer_types': [kind] * 24})
        assert section['attn_config']['sliding_window_size'] == size
    for first, size in ((0, 7), (24, -1)):
        section = to_mpt({**hf, 'max_window_layers': first})
        assert section['attn_config']['sliding_window_size'] == size


YARN = {'rope_type': 'yarn', 'factor': 2.0}


@pytest.mark.parametrize(
    'changes,message',
    [
        ({'model_type': 'bert'}, "model_type='bert': .*not known.*llama, mist"),
        ({'model_type': None}, 'model_type=None: .*not known'),
        (
            {'model_type': 'gemma2'},
            "model_type='gemma2': .*norms after attention .*soft-capping",
        ),
        ({'rope_scaling': YARN}, "rope_scaling.rope_type='yarn'"),
        ({'rope_parameters': YARN}, "rope_parameters.rope_type='yarn'"),
        ({'rope_scaling': {'type': 'dynamic'}}, "rope_type='dynamic'"),
        ({'rope_scaling': {'type': 'longrope'}}, "rope_type='longrope'"),
        ({'rope_scaling': {'type': 'linear'}}, 'rope_scaling.factor=None'),
        ({'rope_scaling': {'x': 1}}, 'rope_scaling.x=1'),
        ({'rope_scaling': 'linear'}, "rope_scaling='linear': it is not a mapping"),
        ({'attention_bias': True}, 'attention_bias=True: .*output projection'),
        ({'model_type': 'qwen3', 'attention_bias': True}, 'attention_bias=Tru'),
        ({'mlp_bias': True}, 'mlp_bias=True: .*have biases'),
        ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
        ({'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping=50.0'),
        ({'final_logit_softcapping': 30.0}, 'final_logit_softcapping=30.0'),
        ({'quantization_config': {'bits': 4}}, 'quantization_config=.*quantis'),
        ({'hidden_act': 'xielu'}, "hidden_act='xielu': .*silu or gelu"),
        ({'model_type': 'gemma', 'hidden_activation': 'gelu'}, 'not differ'),
        ({'model_type': 'mixtral', 'hidden_act': 'gelu'}, "hidden_act='gelu'"),
        ({'hidden_act': ['silu']}, r"hidden_act=\['silu'\]: it is not a text"),
        ({'layer_types': 5}, 'layer_types=5: it is not a list of texts'),
        ({'layer_types': [['x']]}, 'layer_types=.*: it is not a list of texts'),
        ({'rope_scaling': {'rope_type': ['x']}}, r"rope_type=\['x'\]: MPT does"),
        (
            {'rope_scaling': {'rope_type': 'linear', 'factor': '2'}},
            "rope_scaling.factor='2': it is not a number above 0",
        ),
        (
            {'rope_scaling': {'rope_type': 'linear', 'factor': 0}},
            'rope_scaling.factor=0: it is not a number above 0',
        ),
        (
            {
                'model_type': 'qwen2',
                'use_sliding_window': True,
                'sliding_window': 8,
                'max_window_layers': '1',
            },
            "max_window_layers='1': it is not a whole number from 0",
        ),
        ({'attention_dropout': None}, 'attention_dropout=None: it is not a shar'),
        ({'attention_dropout': 2.0}, 'attention_dropout=2.0: it is not a share'),
        ({'rope_theta': None}, 'rope_theta=None: it is not a number above 0'),
        ({'rope_theta': '10000'}, "rope_theta='10000': it is not a number"),
        ({'rms_norm_eps': None}, 'rms_norm_eps=None: it is not a number above'),
        ({'rms_norm_eps': -1}, 'rms_norm_eps=-1: it is not a number above 0'),
        ({'tie_word_embeddings': 'false'}, "embeddings='false': it is not true "),
        (
            {
                'model_type': 'qwen3_moe',
                'num_experts': 4,
                'num_experts_per_tok': 9,
            },
            'num_experts_per_tok=9: there are 4 experts',
        ),
        ({'num_attention_heads': 33}, 'num_attention_heads=33: .*not 4096'),
        ({'hidden_size': '4096'}, "hidden_size='4096': it is a size"),
        ({'num_hidden_layers': 0}, 'num_hidden_layers=0: it is a size'),
        ({'head_dim': True}, 'head_dim=True: it is a size'),
        ({'model_type': 'gemma', 'num_key_value_heads': None}, 'heads=None'),
        (
            {'model_type': 'qwen3_moe', 'decoder_sparse_step': 2},
            r'intermediate_size=14336: .* is 768 \(moe_intermediate_size\)',
        ),
        (
            {'model_type': 'qwen3_moe', 'mlp_only_layers': [*range(32)]},
            'mlp_only_layers=.*: with decoder_sparse_step=1 no layer has exp',
        ),
        ({'model_type': 'qwen3_moe', 'mlp_only_layers': 3}, 'layers=3: it is'),
        ({'model_type': 'qwen2_moe', 'decoder_sparse_step': 0}, 'step=0: it is'),
        ({'model_type': 'smollm3', 'no_rope_layers': [1, 0]}, 'of 32 layers'),
        ({'model_type': 'smollm3', 'no_rope_layers': [2] * 32}, 'it is not a list'),
        ({'model_type': 'smollm3', 'use_sliding_window': True}, 'window=True: o'),
        ({'model_type': 'granite', 'logits_scaling': 0}, 'logits_scaling=0: it'),
        (
            {'model_type': 'granite', 'embedding_multiplier': '12'},
            "embedding_multiplier='12': it is not a number above 0",
        ),
        ({'model_type': 'phi3', 'resid_pdrop': 2}, 'resid_pdrop=2: it is not a s'),
        (
            {'model_type': 'mpt', 'attn_config': {'prefix_lm': True}},
            'attn_config.prefix_lm=True: attention is not causal',
        ),
        ({'model_type': 'mpt', 'n_layers': 0}, 'n_layers=0: it is a size'),
        ({'model_type': 'mpt', 'ffn_config': 5}, 'ffn_config=5: it is not a mapping'),
        ({'model_type': 'phi'}, "='phi': .* side by side, .* part of each head"),
        ({'model_type': 'qwen3_next'}, 'three of four layers are linear attent'),
        (
            {
                'model_type': 'qwen2',
                'use_sliding_window': True,
                'max_window_layers': 28,
            },
            'max_window_layers=28: .*layers would differ',
        ),
        (
            {'layer_types': ['full_attention', 'sliding_attention']},
            r"layer_types=\['full_attention', 'sliding_attention'\]: .*differ",
        ),
        (
            {'layer_types': ['sliding_attention']},
            'layer_types=.*sliding_window=None, .*have no window',
        ),
    ],
)  # yapf: disable
@pytest.mark.filterwarnings('ignore:config.json has')
def test_what_mpt_cannot_express_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        to_mpt({**LLAMA_3_8B, **changes})


def test_the_gelu_of_gemmas_first_config_is_the_one_it_was_trained_with():
    config = {'model_type': 'gemma', 'hidden_act': 'gelu'}
    with pytest.warns(UpcyclingWarning, match='is taken for gelu_pytorch_tanh'):
        section = to_mpt(config)
    assert section == to_mpt({**config, 'hidden_act': 'gelu_pytorch_tanh'})
