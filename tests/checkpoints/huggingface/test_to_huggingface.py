import copy
from typing import Any

import pytest
import tiny
from llmfoundry.models.mpt.configuration_mpt import MPTConfig

from foundry_upcycle.checkpoints.base import flatten, nest
from foundry_upcycle.checkpoints.huggingface.architectures import ARCHITECTURES
from foundry_upcycle.checkpoints.huggingface.to_huggingface import (
    to_huggingface,
)
from foundry_upcycle.checkpoints.huggingface.to_mpt import to_mpt
from foundry_upcycle.errors import ConfigError

LLAMA3_ROPE = {
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
}


def mpt_config(
    is_moe: bool = False,
    attn: Any = (),
    ffn: Any = (),
    **changes: Any,
) -> dict[str, Any]:
    """The tiny model's saved config; ``attn`` and ``ffn`` update sections."""
    make = tiny.moe_config if is_moe else tiny.dense_config
    config = make(**changes)
    config['attn_config'].update(attn)
    config['ffn_config'].update(ffn)
    return config


QK_NORM = {'qk_gn': True, 'norm_type': 'rmsnorm', 'norm_eps': 1e-5}
XPOS = {'rope_impl': 'dail', 'rope_dail_config': {'type': 'xpos'}}
TUNED = {'attn_temperature_tuning': {'attn_scale': 0.1}}
DYNAMIC = {'rope_hf_config': {'type': 'dynamic', 'factor': 2.0}}
ORDER = [{'name': 'default', 'repeat': 2}, {'name': 'other'}]
NO_ROPE = {
    'order': ORDER,
    'overrides': {
        'other': {
            'attn_config': {
                'nope': True,
            },
        },
    },
}
WINDOW = {
    'order': ORDER,
    'overrides': {
        'other': {
            'attn_config': {
                'sliding_window_size': 4,
            },
        },
    },
}
NO_NORM = {'moe_normalize_expert_weights': None}


@pytest.mark.parametrize(
    'is_moe,attn,ffn,changes,model_type,message',
    [
        (0, {'alibi': True, 'rope': False}, {}, {}, None, 'alibi=True: a Huggi'
         'ng Face llama can hold only False'),
        (0, {'rope': False}, {}, {'learned_pos_emb': False}, None,
         'rope=False'),
        (0, {'rope': False}, {}, {}, None, 'model.learned_pos_emb=True'),
        (0, {'clip_qkv': 6}, {}, {}, None, 'clip_qkv=6'),
        (0, {'qk_ln': True}, {}, {}, None, 'qk_ln=True'),
        (0, {'softmax_scale': 0.1}, {}, {}, None, 'softmax_scale=0.1: .*0.25'),
        (0, {'fused_qkv': False}, {}, {'head_dim': 32}, None,
         'softmax_scale=0.25: .*head_dim'),
        (0, {'attn_logit_softcapping': 9}, {}, {}, None, 'softcapping=9'),
        (0, {}, {}, {'final_logit_softcapping': 9}, None, 'final_logit_softc'),
        (0, TUNED, {}, {}, None, 'attn_temperature_tuning.attn_scale=0.1'),
        (0, XPOS, {}, {}, None, "rope_dail_config.type='xpos'"),
        (0, {'rope_impl': 'dail'}, {}, {'head_dim': 8}, None, 'head_dim=8'),
        (0, DYNAMIC, {}, {}, None, "rope_hf_config.type='dynamic'"),
        (0, {'qk_gn': True}, {}, {}, None, "attn_config.norm_type='layernorm'"),
        (0, {**QK_NORM, 'norm_eps': 0.1}, {}, {}, None,
         'norm_eps=0.1: .*1e-05'),
        (0, {}, {'ffn_type': 'mptmlp'}, {}, None, "ffn_type='mptmlp'"),
        (0, {}, {'ffn_act_fn': {'name': 'mish'}}, {}, None, "'mish'"),
        (0, {}, {}, {'norm_type': 'low_precision_layernorm'}, None,
         "norm_type='layernorm'"),
        (0, {}, {}, {'no_bias': False}, None, 'model.no_bias=False'),
        (0, {}, {}, {'logit_scale': 0.3}, 'mistral', 'scale=0.3'),
        (0, {}, {}, {'logit_scale': 0}, 'granite', 'logit_scale=0: .*above 0'),
        (0, {}, {}, {'logit_scale': 0.125}, 'llama', 'logit_scale='),
        (0, {}, {}, {'tie_word_embeddings': True}, 'gemma',
         "logit_scale=None: .*'inv_sqrt_d_model'"),
        (0, {}, {}, {}, 'gemma', "ffn_act_fn=.*'silu'"),
        (0, {}, {}, {'block_overrides': {'order': []}}, None, 'block_overrid'),
        (0, {}, {}, {'block_overrides': NO_ROPE}, 'llama', 'block_overrides=.*'
         'can hold only None'),
        (0, {}, {}, {'block_overrides': WINDOW}, None, 'block_overrides=.*smol'),
        (1, {}, {}, {'block_overrides': NO_ROPE}, None, 'overrides=.*mixtral'),
        (0, {'sliding_window_size': 3}, {}, {}, 'llama', 'size=3: .*llama'),
        (0, {}, {}, {'attention_bias': True}, 'llama', 'attention_bias=True'),
        (0, {}, {}, {}, 'qwen2', 'attention_bias=False: .*qwen2 .*only True'),
        (0, {}, {}, {}, 'mixtral', "ffn_type='mptglu'"),
        (0, {}, {}, {}, 'gpt2', "model_type='gpt2'"),
        (1, {}, {}, {}, 'llama', "ffn_type='upcycled_dmoe'"),
        (1, {}, {'mlp_type': 'mlp'}, {}, None, "mlp_type='mlp'"),
        (1, {}, {'ffn_act_fn': {'name': 'gelu'}}, {}, None, "'gelu'.*silu"),
        (1, {}, NO_NORM, {}, None, 'moe_normalize_expert_weights=None'),
        (1, QK_NORM, {'moe_normalize_expert_weights': 2}, {}, None,
         'weights=2'),
        (1, {}, {}, {'attention_bias': True}, 'mixtral', 'attention_bias=True'),
        (1, {}, {}, {'attention_bias': True, 'head_dim': 8}, None, 'head_dim=8'),
        (1, {}, {'ffn_type': 'torch_dmoe', 'mlp_type': 'glu',
                 'moe_normalize_expert_weights': 1, 'moe_top_k': None}, {},
         None, 'moe_top_k=None'),
        (1, {}, {'uniform_expert_assignment': True}, {}, None, 'uniform_exper'),
    ],
)  # yapf: disable
def test_what_transformers_cannot_express_is_refused(
    is_moe,
    attn,
    ffn,
    changes,
    model_type,
    message,
):
    config = mpt_config(bool(is_moe), attn, ffn, **changes)
    with pytest.raises(ConfigError, match=message):
        to_huggingface(config, model_type)


@pytest.mark.parametrize('ffn_type', ['torch_dmoe', 'mb_dmoe'])
def test_all_mixtures_of_experts_are_one(ffn_type):
    settings = {'mlp_type': 'glu', 'moe_normalize_expert_weights': 1.0}
    config = mpt_config(True, ffn={'ffn_type': ffn_type, **settings})
    assert to_huggingface(config) == to_huggingface(mpt_config(True))


def test_a_config_that_composer_saved_and_its_section_are_one():
    config = tiny.build_dense().config.to_dict()
    saved = nest(flatten(config))
    assert to_huggingface(saved) == to_huggingface(tiny.DENSE)


def test_raw_weights_of_experts_are_qwen3_moes():
    for order, expected in ((None, False), (1, True)):
        ffn = {'moe_normalize_expert_weights': order}
        hf = to_huggingface(mpt_config(True, QK_NORM, ffn))
        assert hf['model_type'] == 'qwen3_moe'
        assert hf['norm_topk_prob'] is expected


def test_a_window_counts_the_token_itself():
    config = mpt_config(attn={'sliding_window_size': 4})
    hf = to_huggingface(config)
    assert (hf['model_type'], hf['sliding_window']) == ('mistral', 5)
    config['attention_bias'] = True
    hf = to_huggingface(config)
    assert (hf['model_type'], hf['max_window_layers']) == ('qwen2', 0)
    assert hf['use_sliding_window'] is True


def test_scaling_of_rope_is_written_as_transformers_4_and_5_read_it():
    rope = {'type': 'llama3', **LLAMA3_ROPE}
    del rope['rope_type']
    hf = to_huggingface(mpt_config(attn={'rope_hf_config': rope}))
    assert hf['rope_scaling'] == LLAMA3_ROPE
    assert hf['rope_theta'] == 10000
    assert to_huggingface(mpt_config())['rope_scaling'] is None


def test_dail_ignores_the_scaling_of_the_other_implementation():
    config = mpt_config(attn={**DYNAMIC, 'rope_impl': 'dail'})
    assert to_huggingface(config)['rope_scaling'] is None


def test_token_ids_are_never_those_of_another_tokenizer():
    hf = to_huggingface({**mpt_config(), 'eos_token_id': 7})
    assert (hf['bos_token_id'], hf['eos_token_id']) == (None, 7)


@pytest.mark.parametrize('model_type', ARCHITECTURES)
def test_sections_make_a_valid_config_and_are_not_changed_by_it(model_type):
    section = to_mpt({'model_type': model_type})
    before = copy.deepcopy(section)
    config = MPTConfig(**copy.deepcopy(section)).to_dict()
    assert to_huggingface(config) == to_huggingface(section)
    assert section == before
