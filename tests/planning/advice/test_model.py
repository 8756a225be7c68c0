"""Equal FLOPs, counted by hand."""

import pytest

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.advice.model import (
    Mixture,
    model_of_numbers,
    model_of_shape,
)
from foundry_upcycle.planning.flops import ModelShape
from foundry_upcycle.study.points import paper_points

# 64 * 8 embeddings, tied; 2 blocks of attention 4 * 8 * 8, GLU 3 * 8 * 16 and 2
# norms of 8; a last norm of 8: 1832, all active. With top-2 of 8 experts each
# block has an expert of 384 and a router of 8 * 8 more: 2728. Attention adds
# 12 * layers 2 * width 8 * 4 tokens = 768 to 6 * active FLOPs a token.
SIZES = {
    'd_model': 8,
    'n_heads': 2,
    'n_layers': 2,
    'vocab_size': 64,
    'no_bias': True,
    'norm_type': 'rmsnorm',
    'learned_pos_emb': False,
}
SHAPE = ModelShape.from_config({
    **SIZES,
    'ffn_config': {
        'ffn_type': 'mptglu',
        'ffn_hidden_size': 16,
    },
})
DENSE, MOE = 6 * 1832 + 768, 6 * 2728 + 768


def test_a_shape_is_counted():
    model = model_of_shape('small', SHAPE, 4, 12_000, Mixture(8, 2), 12)
    assert model.n_params == 1832
    assert model.flops == {'cpt': DENSE, 'upcycled': MOE}
    # Half of 1000 steps; of the mixture 343.14 are as many FLOPs.
    assert model.tokens_of('cpt', 0.5) == 500 * 12
    assert 500 * DENSE / MOE == pytest.approx(343.14, abs=0.01)
    assert model.tokens_of('upcycled', 0.5) == 343 * 12


def test_a_budget_of_no_step_is_refused():
    model = model_of_shape('small', SHAPE, 4, 12_000, Mixture(8, 2), 12)
    with pytest.raises(ConfigError, match='budget_flops=.*half a step'):
        model.tokens_of('cpt', 1e-4)


@pytest.mark.parametrize(
    'n_params,ratio',
    [
        # The paper's tokens of 0.1 to 1.0, continued over upcycled; a mean over
        # all of a size's runs.
        (436e6, 1.338),
        (1.42e9, 1.461),
        (786.8e6, 1.3995),  # Halfway, in logarithms.
        (1e8, 1.338),
        (8e9, 1.461),
    ],
)
def test_numbers_have_the_papers_share_of_experts(n_params, ratio):
    model = model_of_numbers(n_params, 1e11, Mixture(8, 2), paper_points())
    assert model.flops['cpt'] == 6 * n_params
    found = model.flops['upcycled'] / model.flops['cpt']
    assert found == pytest.approx(ratio, abs=0.001)
    assert model.tokens_of('cpt', 0.4) == 40_000_000_000
    assert model.tokens_of('upcycled', 0.4) == pytest.approx(4e10 / found)


@pytest.mark.parametrize('top_k,more', [(1, 0.0), (4, 3.0)])
def test_a_token_visits_top_k_experts(top_k: int, more: float):
    of_k, of_2 = (
        model_of_numbers(436e6, 1e11, Mixture(8, k), paper_points())
        for k in (top_k, 2)
    )
    share = of_2.flops['upcycled'] / of_2.flops['cpt'] - 1
    found = of_k.flops['upcycled'] / of_k.flops['cpt']
    assert found == pytest.approx(1 + more * share)


@pytest.mark.parametrize('n_experts,top_k', [(8, 1), (8, 2), (4, 3)])
def test_the_mixture_is_that_of_a_yaml(n_experts: int, top_k: int):
    config = {
        **SIZES,
        'ffn_config': {
            'ffn_type': 'upcycled_dmoe',
            'ffn_hidden_size': 16,
            'moe_num_experts': n_experts,
            'moe_top_k': top_k,
        },
    }
    moe = ModelShape.from_config(config)
    assert SHAPE.upcycled(n_experts, top_k) == moe
    with pytest.raises(ConfigError, match='model=.*mixture of experts already'):
        moe.upcycled(8, 2)


@pytest.mark.parametrize(
    'n_experts,top_k,message',
    [
        (1, 1, 'moe_num_experts=1: a mixture has two'),
        (8, 9, 'moe_top_k=9: there are 8 experts'),
        (8, 0, 'moe_top_k=0: there are 8 experts'),
    ],
)
def test_what_is_no_mixture(n_experts: int, top_k: int, message: str):
    with pytest.raises(ConfigError, match=message):
        Mixture(n_experts, top_k)
