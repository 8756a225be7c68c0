import copy
import warnings
from typing import Any

import pytest
import tiny

from foundry_upcycle.checkpoints.base import Checkpoint, flatten
from foundry_upcycle.checkpoints.exactness import (
    check_same_function,
    check_same_model,
)
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.errors import ConfigError, UpcyclingWarning

SAMPLE = {'sample': {1: 0.5, 2: 0.5}}


class FakeReader(Checkpoint):
    path = 'dense.pt'
    tensors: dict = {}

    def __init__(self, config: dict[str, Any]):
        self.model_config = flatten(config)

    def read(self, name: str, dim: int, start: int, stop: int) -> Any:
        raise AssertionError('only the config is compared')


@pytest.fixture(scope='module')
def dense() -> dict[str, Any]:
    return tiny.build_dense().config.to_dict()


@pytest.fixture(scope='module')
def moe() -> dict[str, Any]:
    return tiny.build_moe().config.to_dict()


def test_only_the_feed_forward_layers_differ(dense, moe):
    check_same_function(FakeReader(dense), moe)


def test_a_checkpoint_without_config_is_warned_of(moe):
    with pytest.warns(UserWarning, match='dense.pt carries no model config'):
        check_same_function(FakeReader({}), moe)


@pytest.mark.parametrize(
    'keys,value,message',
    [
        (['n_heads'], 8, 'model.n_heads=8: dense.pt was trained with 4'),
        (['norm_eps'], 1e-6, 'model.norm_eps=1e-06: .*Fix: set it to 1e-05'),
        (['norm_type'], 'layernorm', "norm_type='layernorm': .*'rmsnorm'"),
        (['attn_config', 'rope_theta'], 5, 'rope_theta=5: .*with 10000'),
        (
            ['attn_config', 'rope_hf_config', 'factor'],
            2.0,
            'rope_hf_config=.*2.0.*: .*with .*1.0',
        ),
        (
            ['ffn_config', 'ffn_act_fn'],
            {
                'name': 'relu',
            },
            "ffn_act_fn={'name': 'relu'}: .*with {'name': 'silu'}",
        ),
        (
            ['ffn_config', 'ffn_act_fn'],
            None,
            "ffn_act_fn=.*'gelu'.*: .*with {'name': 'silu'}",
        ),
    ],
)
def test_another_function_is_refused(dense, moe, keys, value, message):
    config = copy.deepcopy(moe)
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(ConfigError, match=message):
        check_same_function(FakeReader(dense), config)


def test_the_same_function_under_other_names_passes(dense, moe):
    dense, moe = copy.deepcopy(dense), copy.deepcopy(moe)
    dense['norm_type'] = 'low_precision_rmsnorm'
    dense['attn_config']['attn_impl'] = 'flash'
    dense['ffn_config']['ffn_act_fn'] = None
    moe['ffn_config']['ffn_act_fn'] = {'name': 'gelu', 'approximate': 'none'}
    check_same_function(FakeReader(dense), moe)


def test_a_config_of_an_older_foundry_has_todays_defaults(dense, moe):
    dense = copy.deepcopy(dense)
    del dense['attn_config']['attn_temperature_tuning']
    del dense['attn_config']['rope_hf_config']['factor']
    del dense['final_logit_softcapping']
    check_same_function(FakeReader(dense), moe)


def test_both_implementations_of_rope_are_one_function(dense, moe):
    dense = copy.deepcopy(dense)
    dense['attn_config']['rope_impl'] = 'dail'
    check_same_function(FakeReader(dense), moe)
    # Which only the other reads.
    dense['attn_config']['rope_hf_config'] = {'type': 'linear', 'factor': 4.0}
    check_same_function(FakeReader(dense), moe)
    scaled = copy.deepcopy(moe)
    scaled['attn_config']['rope_hf_config'] = {'type': 'linear', 'factor': 4.0}
    with pytest.raises(ConfigError, match='rope_hf_config=.*linear'):
        check_same_function(FakeReader(dense), scaled)
    dense['attn_config']['rope_dail_config']['type'] = 'xpos'
    with pytest.raises(ConfigError, match="rope_impl='hf': .*'dail with xpos'"):
        check_same_function(FakeReader(dense), moe)


def test_megablocks_has_another_default_activation(dense, moe):
    dense, moe = copy.deepcopy(dense), copy.deepcopy(moe)
    dense['ffn_config']['ffn_act_fn'] = None
    moe['ffn_config'] = {'ffn_type': 'mb_dmoe'}
    with pytest.raises(ConfigError, match="'tanh'.* trained with .*'none'"):
        check_same_function(FakeReader(dense), moe)


def test_which_layers_are_experts_does_not_change_the_dense_function(dense):
    moe = tiny.build_moe({'moe_layers': [1]}).config.to_dict()
    check_same_function(FakeReader(dense), moe)


@pytest.mark.parametrize(
    'top_k,warns',
    [
        (SAMPLE, False),
        # As a checkpoint's JSON has it.
        ({
            'sample': {
                '2': 0.5,
                '1': 0.5
            }
        }, False),
        (1, False),
        (2, False),
        (3, True),
        ({
            'until': {
                '0.5dur': 2,
                '1dur': 3
            }
        }, True),
    ],
)
def test_a_k_that_occurred_is_one_that_it_was_trained_with(moe, top_k, warns):
    trained, evaluated = copy.deepcopy(moe), copy.deepcopy(moe)
    trained['ffn_config']['moe_top_k'] = SAMPLE
    evaluated['ffn_config']['moe_top_k'] = top_k
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', UpcyclingWarning)
        check_same_model(FakeReader(trained), evaluated, 'model')
    assert ['moe_top_k=' in str(w.message) for w in caught] == [True] * warns


def test_which_layers_are_experts_is_of_the_model(moe):
    partial = tiny.build_moe({'moe_layers': [2, 0]}).config.to_dict()
    same, all_layers = copy.deepcopy(partial), copy.deepcopy(moe)
    same['ffn_config']['moe_layers'] = [0, 2]
    all_layers['ffn_config']['moe_layers'] = [0, 1, 2]
    check_same_model(FakeReader(partial), same, 'model')
    check_same_model(FakeReader(moe), all_layers, 'model')
    with pytest.raises(
            ConfigError,
            match=r'moe_layers=None: dense.pt was trained with \[0, 2\]',
    ):
        check_same_model(FakeReader(partial), moe, 'model')


def test_composer_checkpoints_carry_the_config(tmp_path):
    path = tiny.train_and_save_dense(tmp_path)
    config = open_checkpoint(path).model_config
    assert config['attn_config.kv_n_heads'] == 2
    assert config['ffn_config.ffn_act_fn.name'] == 'silu'
