"""Held to what LLM Foundry says itself."""

import warnings
from inspect import signature

import pytest
import tiny
from llmfoundry.models.layers.attention import GroupedQueryAttention
from llmfoundry.models.mpt import MPTConfig, MPTModel
from llmfoundry.models.utils.config_defaults import attn_config_defaults

from foundry_upcycle.checkpoints.foundry_config import (
    ATTENTION_SETTINGS,
    CONFIG_DEFAULTS,
    blocks_in_order,
    with_defaults,
)


def test_settings_are_foundrys():
    of_config = signature(MPTConfig).parameters.keys() - {'kwargs'}
    assert CONFIG_DEFAULTS.keys() == of_config
    of_layer = signature(GroupedQueryAttention).parameters.keys()
    assert attn_config_defaults.keys() | of_layer == ATTENTION_SETTINGS


@pytest.mark.parametrize(
    'section',
    [
        {},
        tiny.dense_config(),
        {
            'attn_config': {
                'alibi': True,
                'attn_impl': 'torch',
                'rope_dail_config': {
                    'type': 'xpos',
                },
            },
            'no_bias': True,
            'max_seq_len': 64.0,
            'fc_type': 'torch',
            'ffn_config': {
                'ffn_type': 'mptglu',
                'fc_type': {
                    'name': 'other',
                },
            },
        },
        {
            'attn_config': {
                'rope': True,
                'rope_impl': 'hf',
                'rope_hf_config': {
                    'type': 'llama3',
                    'low_freq_factor': 1,
                },
            },
            'attention_bias': True,
            'no_bias': True,
            'init_config': None,
            'fc_type': {
                'name': 'torch',
                'more': 1,
            },
        },
    ],
)
def test_a_section_has_foundrys_defaults(section):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = MPTConfig(**tiny.copy.deepcopy(section)).to_dict()
    found = with_defaults(section)
    assert {
        key: expected[key]
        for key in CONFIG_DEFAULTS
    } == {
        key: found[key]
        for key in CONFIG_DEFAULTS
    }


def test_blocks_are_in_foundrys_order():
    order = [
        {
            'name': 'default',
            'repeat': 2,
        },
        {
            'order': [{
                'name': 'one',
            }, {
                'name': 'other',
                'repeat': 2,
            }],
            'repeat': 2,
        },
    ]
    expected = MPTModel._get_modules_order_expanded(order)
    assert [*blocks_in_order(order)] == expected
