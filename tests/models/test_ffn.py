import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.ffn import build_upcycled_dmoe


@pytest.mark.parametrize(
    'changes,message',
    [
        ({
            'moe_capacity_factor': 1,
        }, 'model.ffn_config.moe_capacity_factor=1: .* no such setting'),
        ({
            'bias': True,
        }, 'model.no_bias=False: .*Fix: set no_bias: true'),
        ({
            'mlp_type': 'swiglu',
        }, "model.ffn_config.mlp_type='swiglu': .*glu"),
        ({
            'backend': 'fast',
        }, "model.ffn_config.backend='fast': .*loop"),
        ({
            'moe_num_experts': 0,
        }, 'model.ffn_config.moe_num_experts=0: .*from 1'),
        ({
            'moe_top_k': 9,
        }, 'model.ffn_config.moe_top_k=9: .*to moe_num_experts=8'),
        ({
            'moe_top_k': 0,
        }, 'model.ffn_config.moe_top_k=0: '),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str):
    arguments = {'d_model': 8, 'expansion_ratio': 2, 'bias': False, **changes}
    with pytest.raises(ConfigError, match=message):
        build_upcycled_dmoe(**arguments)


def test_hidden_size_follows_the_expansion_ratio():
    layer = build_upcycled_dmoe(d_model=8, expansion_ratio=2, bias=False)
    assert layer.experts.mlp.w1.shape == (8 * 16, 8)
