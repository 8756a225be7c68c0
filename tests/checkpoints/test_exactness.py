import copy
from typing import Any

import pytest
import tiny

from foundry_upcycle.checkpoints.exactness import check_same_function
from foundry_upcycle.checkpoints.reader import flatten, open_checkpoint
from foundry_upcycle.errors import ConfigError


class FakeReader:
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


def test_a_checkpoint_without_config_passes(moe):
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
            'rope_hf_config.factor=2.0: .*with 1.0',
        ),
        (
            ['ffn_config', 'ffn_act_fn'],
            {
                'name': 'relu',
            },
            "ffn_act_fn.name='relu': .*with 'silu'",
        ),
        (
            ['ffn_config', 'ffn_act_fn'],
            None,
            "ffn_act_fn.approximate='none': .*with None",
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


def test_composer_checkpoints_carry_the_config(dense, tmp_path):
    trainer = tiny.make_trainer(
        tiny.build_dense(),
        duration='1ba',
        save_folder=str(tmp_path),
        save_filename='dense.pt',
    )
    trainer.fit()
    trainer.close()
    config = open_checkpoint(str(tmp_path / 'dense.pt')).model_config
    assert config['attn_config.kv_n_heads'] == 2
    assert config['ffn_config.ffn_act_fn.name'] == 'silu'
