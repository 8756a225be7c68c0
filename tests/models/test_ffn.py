import math

import pytest
import tiny
import torch
from llmfoundry.utils.builders import build_composer_model

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.ffn import build_upcycled_dmoe


@pytest.mark.parametrize(
    'changes,message',
    [
        ({
            'moe_capacity_factor': 1,
        }, 'model.ffn_config.moe_capacity_factor=1: .* no such setting'),
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
        ({
            'moe_num_experts': None,
        }, 'moe_num_experts=None: .*from 1'),
        ({
            'moe_loss_weight': None,
        }, 'moe_loss_weight=None: .*0 or more'),
        # Of a size that only memory would refuse, later.
        ({
            'moe_num_experts': 10**7,
        }, 'moe_num_experts=10000000: .*from 1 to 65536'),
        ({
            'ffn_hidden_size': 10**9,
        }, 'ffn_hidden_size=1000000000: .*a number from 1'),
        ({
            'moe_loss_weight': math.inf,
        }, 'moe_loss_weight=inf: .*0 or more'),
        ({
            'moe_loss_weight': 10**400,
        }, 'moe_loss_weight=1000.*0 or more'),
        ({
            'moe_zloss_weight': math.nan,
        }, 'moe_zloss_weight=nan: .*0 or more'),
        ({
            'moe_top_k': True,
        }, 'moe_top_k=True: '),
        ({
            'moe_zloss_weight': -0.1,
        }, 'moe_zloss_weight=-0.1: .*0 or more'),
        ({
            'moe_normalize_expert_weights': '1',
        }, "moe_normalize_expert_weights='1': .*a number above 0"),
        ({
            'moe_normalize_expert_weights': -1,
        }, 'moe_normalize_expert_weights=-1: .*null, or'),
        ({
            'ffn_hidden_size': 0,
        }, 'ffn_hidden_size=0: .*a number from 1'),
        ({
            'ffn_hidden_size': '96',
        }, "ffn_hidden_size='96': .*a number from 1"),
        ({
            'ffn_act_fn': 'silu',
        }, "ffn_act_fn='silu': .*a mapping such as {name: silu}"),
        ({
            'ffn_act_fn': {
                'name': 'silly'
            },
        }, "ffn_act_fn={'name': 'silly'}: .*none of this name"),
        ({
            'ffn_act_fn': {
                'name': 'silu',
                'approximate': 'tanh'
            },
        }, 'ffn_act_fn=.*and these arguments'),
        ({
            'mlp_type': ['glu'],
        }, r"mlp_type=\['glu'\]: .*glu"),
        ({
            'backend': ['loop'],
        }, r"backend=\['loop'\]: .*loop"),
        # Of a torch without it, and of one with it.
        ({
            'backend': 'grouped_mm',
            'ffn_hidden_size': 12,
        }, "backend='grouped_mm': .*(no grouped products|multiples of 8)"),
        ({
            'moe_jitter_eps': 1.0,
        }, 'moe_jitter_eps=1.0: .*between 0 and 1'),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str):
    arguments = {'d_model': 8, 'expansion_ratio': 2, 'bias': False, **changes}
    with pytest.raises(ConfigError, match=message):
        build_upcycled_dmoe(**arguments)


def test_hidden_size_follows_the_expansion_ratio():
    layer = build_upcycled_dmoe(d_model=8, expansion_ratio=2, bias=False)
    assert layer.experts.mlp.w1.shape == (8 * 16, 8)


def test_training_without_the_losses_is_refused():
    # The FFN is in Foundry's registry: the dense model class builds it, too.
    model = build_composer_model(
        'mpt_causal_lm',
        tiny.moe_config(),
        tokenizer=None,
    )
    batch = tiny.make_batch()
    model.eval()
    model(batch)
    model.train()
    with pytest.raises(
            ConfigError,
            match="model.name='mpt_causal_lm': .*Fix: set model.name: upcycled",
    ):
        model(batch)


def test_a_layer_without_losses_trains_anywhere():
    layer = build_upcycled_dmoe(
        d_model=8,
        expansion_ratio=2,
        bias=False,
        moe_loss_weight=0,
    )
    layer.train()(torch.zeros(2, 8))
