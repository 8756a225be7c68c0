from typing import Any, Callable

import pytest
import tiny
import torch

from foundry_upcycle.checkpoints.base import TensorInfo
from foundry_upcycle.checkpoints.plan import (
    CarriedTensor,
    ExpertTensor,
    RouterTensor,
    make_plan,
)
from foundry_upcycle.errors import CheckpointError


class FakeReader:
    """Names and shapes, and biases: a plan reads no other tensor."""

    path = 'dense.pt'
    model_config: dict = {}

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state = state
        self.tensors = {
            name: TensorInfo(tuple(t.shape), t.dtype)
            for name, t in state.items()
        }

    def read(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        assert name.endswith('.bias'), 'a plan reads only biases'
        return self.state[name].narrow(dim, start, stop - start)


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


def dense_state(**changes: Any) -> dict[str, torch.Tensor]:
    return tiny.build_dense(**changes).state_dict()


@pytest.mark.parametrize('tied', [True, False])
def test_plan_is_total(tied: bool):
    dense = dense_state(tie_word_embeddings=tied)
    targets = shapes(tiny.build_moe(tie_word_embeddings=tied))
    plan = make_plan(FakeReader(dense), targets)
    assert [item.target for item in plan] == list(targets)
    used = [i.target for i in plan if isinstance(i, CarriedTensor)]
    used += [i.source for i in plan if isinstance(i, ExpertTensor)]
    assert sorted(used) == sorted(dense)
    assert sum(isinstance(i, RouterTensor) for i in plan) == 3


def test_plan_is_total_where_some_layers_stay_dense():
    dense = dense_state()
    targets = shapes(tiny.build_moe({'moe_layers': [1]}))
    plan = make_plan(FakeReader(dense), targets)
    assert [item.target for item in plan] == list(targets)
    carried = [i.target for i in plan if isinstance(i, CarriedTensor)]
    experts = [i for i in plan if isinstance(i, ExpertTensor)]
    assert sorted(carried + [i.source for i in experts]) == sorted(dense)
    assert 'model.transformer.blocks.0.ffn.gate_proj.weight' in carried
    assert {i.layer for i in experts} == {1} and len(experts) == 3
    assert [i.layer for i in plan if isinstance(i, RouterTensor)] == [1]


def test_mlp_experts_come_from_an_mlp():
    ffn = {'ffn_type': 'mptmlp', 'ffn_hidden_size': tiny.HIDDEN}
    dense = dense_state(ffn_config=ffn)
    plan = make_plan(
        FakeReader(dense),
        shapes(tiny.build_moe({'mlp_type': 'mlp'})),
    )
    sources = {i.weight: i for i in plan if isinstance(i, ExpertTensor)}
    assert sources['w1'].source.endswith('up_proj.weight')
    assert not sources['w1'].transpose
    assert sources['w2'].source.endswith('down_proj.weight')
    assert sources['w2'].transpose


def with_biases(state: dict[str, torch.Tensor]) -> None:
    for layer in range(3):
        name = f'model.transformer.blocks.{layer}.ffn.up_proj.bias'
        state[name] = torch.zeros(96)
    state[name][-1] = 1e-30


def with_integers(state: dict[str, torch.Tensor]) -> None:
    name = 'model.transformer.norm_f.weight'
    state[name] = state[name].to(torch.int8)


def without_norm(state: dict[str, torch.Tensor]) -> None:
    del state['model.transformer.norm_f.weight']


@pytest.mark.parametrize(
    'dense,ffn,message',
    [
        (
            {
                'n_layers': 4,
            },
            {},
            r'blocks\.3\..* and \d+ more would be lost.*n_layers',
        ),
        ({
            'n_layers': 2,
        }, {}, r'it has no model.transformer.blocks\.2\.'),
        (
            {
                'vocab_size': 64,
            },
            {},
            r'wte.weight has shape \(64, 64\), the model needs \(128, 64\)',
        ),
        (
            {},
            {
                'ffn_hidden_size': 48,
            },
            '96 hidden channels; 8 experts of that size need 768 rows .*has '
            '384.*Fix: set model.ffn_config.ffn_hidden_size: 96',
        ),
        ({
            'tie_word_embeddings': True,
        }, {}, r'it has no model.lm_head.weight'),
        ({}, {
            'mlp_type': 'mlp',
        }, 'gate_proj.weight and 2 more would be lost'),
        (
            {
                'ffn_config': {
                    'ffn_type': 'mptmlp',
                    'ffn_hidden_size': tiny.HIDDEN,
                },
            },
            {},
            'it has no .*gate_proj.weight.*mlp for a dense mptmlp',
        ),
    ],
)
def test_models_that_differ(dense: dict, ffn: dict, message: str):
    reader = FakeReader(dense_state(**dense))
    with pytest.raises(CheckpointError, match=message):
        make_plan(reader, shapes(tiny.build_moe(ffn)))


@pytest.mark.parametrize(
    'change,message',
    [
        (
            with_biases,
            'experts hold no biases, and it has .*2.ffn.up_proj.bias that are '
            'not zero',
        ),
        (with_integers, 'norm_f.weight has dtype torch.int8'),
        (without_norm, 'it has no model.transformer.norm_f.weight'),
    ],
)
def test_damaged_sources(change: Callable[[dict], None], message: str):
    state = dict(dense_state())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        make_plan(FakeReader(state), shapes(tiny.build_moe()))


@pytest.mark.parametrize('moe_layers', [None, [1]])
def test_biases_that_are_zero_are_left_out(moe_layers: Any):
    dense = dense_state(no_bias=False)  # Foundry starts them at 0.
    targets = shapes(tiny.build_moe({'moe_layers': moe_layers}, no_bias=False))
    # A block that stays dense keeps what it has.
    dense['model.transformer.blocks.0.ffn.up_proj.bias'][0] = (
        0 if moe_layers is None else 1
    )
    plan = make_plan(FakeReader(dense), targets)
    assert [item.target for item in plan] == list(targets)
    used = {i.target for i in plan if isinstance(i, CarriedTensor)}
    used |= {i.source for i in plan if isinstance(i, ExpertTensor)}
    layers = range(3) if moe_layers is None else moe_layers
    assert set(dense) - used == {
        f'model.transformer.blocks.{layer}.ffn.{projection}_proj.bias'
        for layer in layers
        for projection in ('gate', 'up', 'down')
    }


def test_a_mixture_is_not_upcycled_again():
    state = tiny.build_moe().state_dict()
    with pytest.raises(
            CheckpointError,
            match='a mixture of experts already .*set load_path',
    ):
        make_plan(FakeReader(state), shapes(tiny.build_moe()))


def test_a_dense_model_is_not_filled():
    reader = FakeReader(dense_state())
    with pytest.raises(
            CheckpointError,
            match='a model without experts.*Fix: set model.name: upcycled_mpt',
    ):
        make_plan(reader, shapes(tiny.build_dense()))
