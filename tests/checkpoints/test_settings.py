import pytest
import tiny

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.settings import complete, require_mpt
from foundry_upcycle.errors import CheckpointError


def config(attn=(), ffn=(), **changes):
    config = tiny.dense_config(**changes)
    config['attn_config'].update(attn)
    config['ffn_config'].update(ffn)
    return config


def overrides(order, **attn):
    return {'order': order, 'overrides': {'other': {'attn_config': attn}}}


@pytest.mark.parametrize(
    'first,second',
    [
        ({}, {
            'norm_type': 'low_precision_rmsnorm',
        }),
        ({}, {
            'head_dim': 16,
        }),
        ({}, {
            'attn': {
                'softmax_scale': 0.25,
            },
        }),
        ({}, {
            'attention_bias': False,
        }),
        (
            {},
            {
                'learned_pos_emb': True,  # Rope replaces them.
            }
        ),
        (
            {
                'logit_scale': 0.125,
            },
            {
                'logit_scale': 'inv_sqrt_d_model',
            },
        ),
        ({}, {
            'logit_scale': 1,
        }),
        ({}, {
            'block_overrides':
            overrides([{
                'order': [{
                    'name': 'other',
                }],
                'repeat': 3,
            }],
                      sliding_window_size=-1),
        }),
        (
            {
                'block_overrides':
                overrides([
                    {
                        'name': 'default',
                    },
                    {
                        'name': 'other',
                        'repeat': 2,
                    },
                ],
                          nope=True),
            },
            {
                'block_overrides':
                overrides([
                    {
                        'name': 'default',
                    },
                    {
                        'name': 'other',
                    },
                    {
                        'name': 'other',
                    },
                ],
                          nope=True,
                          sliding_window_size=-1),
            },
        ),
        (
            {
                'ffn': {
                    'ffn_act_fn': None,
                },
            },
            {
                'ffn': {
                    'ffn_act_fn': {
                        'name': 'gelu',
                    },
                },
            },
        ),
        (
            {
                'ffn': {
                    'ffn_hidden_size': None,
                },
                'expansion_ratio': 2,
            },
            {
                'ffn': {
                    'ffn_hidden_size': 128,
                },
                'expansion_ratio': 2,
            },
        ),
    ],
)
def test_one_function_has_one_spelling(first, second):
    assert complete(config(**first)) == complete(config(**second))


def test_kinds_of_attention_are_numbers_of_heads():
    for kind, kv_n_heads in (
        ('multihead_attention', 4),
        ('multiquery_attention', 1),
        ('grouped_query_attention', 2),
    ):
        settings = complete(config(attn={'attn_type': kind}))
        assert settings['attn_config.kv_n_heads'] == kv_n_heads


def test_a_mixture_has_the_layers_defaults():
    settings = complete(tiny.moe_config())
    assert settings['ffn_config.moe_normalize_expert_weights'] == 1
    assert settings['ffn_config.mlp_type'] == 'glu'


def test_megablocks_has_another_default_activation():
    ffn = {'ffn_type': 'mb_dmoe', 'ffn_act_fn': None}
    settings = complete(config(ffn=ffn))
    assert settings['ffn_config.ffn_type'] == 'upcycled_dmoe'
    assert settings['ffn_config.ffn_act_fn']['approximate'] == 'tanh'


def test_a_number_of_layers_without_end_is_refused_at_once(tmp_path):
    model = tiny.build_dense()
    model.config.n_layers = 10**12
    path = tiny.save_dense(model, tmp_path / 'dense.pt')
    with pytest.raises(CheckpointError, match='config says 1000000000000 lay'):
        require_mpt(open_checkpoint(path))


@pytest.mark.parametrize(
    'key,value',
    [('n_heads', 0), ('norm_type', 5), ('ffn_config', {
        'ffn_act_fn': {
            'a': 1
        }
    })],
)
def test_a_config_of_no_model_is_the_checkpoints_fault(tmp_path, key, value):
    model = tiny.build_dense()
    setattr(model.config, key, value)
    path = tiny.save_dense(model, tmp_path / 'dense.pt')
    with pytest.raises(CheckpointError, match='dense.pt: its model config is'):
        require_mpt(open_checkpoint(path))
