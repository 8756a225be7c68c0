import pytest
import tiny

from foundry_upcycle.checkpoints import empty
from foundry_upcycle.checkpoints.base import flatten
from foundry_upcycle.checkpoints.shapes import parameter_shapes
from foundry_upcycle.errors import ConfigError


def config(attn=(), ffn=(), **changes):
    config = tiny.dense_config(**changes)
    config['attn_config'].update(attn)
    config['ffn_config'].update(ffn)
    return config


def of_model(config):
    model = empty.empty_model(flatten(config))
    return [(f'model.{name}', tuple(parameter.shape))
            for name, parameter in model.named_parameters()]


PLAIN = [
    config(),
    config(no_bias=False),
    config(no_bias=False, norm_type='low_precision_layernorm'),
    config(no_bias=True, attention_bias=True, tie_word_embeddings=True),
    config(attn={'rope': False}, norm_type='layernorm'),
    config(attn={'rope': False}, learned_pos_emb=False),
    config(attn={'fused_qkv': False}, head_dim=24),
    config(attn={'qk_ln': True}),
    config(
        attn={
            'qk_gn': True,
            'norm_type': 'rmsnorm',
        },
        no_bias=False,
    ),
    config(attn={'rope_impl': 'dail'}),
    config(ffn={'ffn_type': 'mptmlp'}, expansion_ratio=3),
    config(ffn={'ffn_hidden_size': None}, expansion_ratio=2.5),
    tiny.moe_config(),
    tiny.moe_config({'moe_layers': [2, 0]}),
    tiny.moe_config({
        'mlp_type': 'mlp',
        'moe_layers': [1]
    }, no_bias=False),
    {
        'd_model': 32,
        'n_heads': 2,
        'n_layers': 1,
    },
    {
        **config(),
        'attn_config': {
            'attn_type': 'multiquery_attention',
            'attn_impl': 'torch',
        },
    },
]


@pytest.mark.parametrize('section', PLAIN)
def test_shapes_are_those_of_the_model(section, monkeypatch):
    expected = of_model(section)
    # Not of the model itself.
    monkeypatch.setattr(empty, 'empty_model', None)
    assert [*parameter_shapes(flatten(section)).items()] == expected


@pytest.mark.parametrize(
    'section',
    [
        config(
            block_overrides={
                'order': [{
                    'name': 'default',
                    'repeat': 2,
                }, {
                    'name': 'reuse',
                }],
                'overrides': {
                    'reuse': {
                        'attn_config': {
                            'reuse_kv_layer_idx': -1,
                        },
                    },
                },
            },
        ),
        config(fuse_norm_attn_norm=True),
        config(resid_pdrop=0.1),
        tiny.moe_config({
            'ffn_type': 'torch_dmoe',
            'moe_jitter_eps': None,
            'mlp_type': 'glu',
            'moe_normalize_expert_weights': 1,
            'uniform_expert_assignment': False,
        }),
    ],
)
def test_the_model_itself_is_asked_of_other_settings(section):
    assert [*parameter_shapes(flatten(section)).items()] == of_model(section)


@pytest.mark.parametrize(
    'section',
    [
        config(d_model=65),
        config(logit_scale='other'),
        config(norm_type='other'),
        config(pad_token_id=tiny.VOCAB),
        config(n_layers='3'),
        config(attn={'kv_n_heads': 3}),
        config(attn={'attn_type': 'multihead_attention'}),
        config(attn={'more': 1}),
        config(attn={
            'rope_hf_config': {
                'type': 'llama3',
                'factor': 2,
            },
        }),
        config(attn={
            'qk_ln': True,
            'qk_gn': True,
        }),
        config(ffn={'ffn_act_fn': {
            'name': 'other',
        }}),
        config(ffn={'more': 1}),
        config(ffn={'ffn_hidden_size': None}, expansion_ratio=1.01),
    ],
)
def test_foundry_refuses_what_it_can_not_build(section):
    with pytest.raises(Exception) as expected:
        of_model(section)
    with pytest.raises(type(expected.value)) as found:
        parameter_shapes(flatten(section))
    assert str(found.value) == str(expected.value)


def test_experts_are_refused_in_the_layers_words():
    with pytest.raises(ConfigError, match='moe_top_k=9'):
        parameter_shapes(flatten(tiny.moe_config({'moe_top_k': 9})))
