import pytest
import tiny
import torch

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.upcycled import UpcycledCheckpoint
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.errors import CheckpointError, ConfigError


@pytest.fixture(scope='module')
def dense():
    return tiny.build_dense()


@pytest.fixture(scope='module')
def source(dense, tmp_path_factory) -> str:
    return tiny.save_dense(dense, tmp_path_factory.mktemp('d') / 'dense.pt')


def upcycled(source: str, model=None, **settings) -> UpcycledCheckpoint:
    model = tiny.build_moe() if model is None else model
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    config = UpcyclingConfig(source, **settings)
    return UpcycledCheckpoint(open_checkpoint(source), shapes, config)


def whole(view: UpcycledCheckpoint, name: str) -> torch.Tensor:
    return view.read(name, 0, 0, view.tensors[name].shape[0])


def test_experts_are_the_dense_layer(source, dense):
    view = upcycled(source)
    for i, block in enumerate(dense.model.transformer.blocks):
        prefix = f'model.transformer.blocks.{i}'
        for name, weight in (
            ('w1', block.ffn.gate_proj.weight),
            ('v1', block.ffn.up_proj.weight),
            ('w2', block.ffn.down_proj.weight.t()),
        ):
            stack = whole(view, f'{prefix}.ffn.experts.mlp.{name}')
            assert torch.equal(stack, weight.repeat(8, 1))
        carried = whole(view, f'{prefix}.attn.Wqkv.weight')
        assert torch.equal(carried, block.attn.Wqkv.weight)


def test_every_slice_is_a_slice_of_the_whole(source):
    view = upcycled(source)
    for name, (shape, _) in view.tensors.items():
        full = whole(view, name)
        assert full.shape == shape
        for dim, size in enumerate(shape):
            for start, stop in ((0, size), (1, size), (size // 3, size - 1)):
                found = view.read(name, dim, start, stop)
                expected = full.narrow(dim, start, stop - start)
                assert torch.equal(found, expected), name
        start, stop = shape[0] // 3, shape[0] - 1
        blocks = list(view.rows(name, start, stop))
        assert torch.equal(torch.cat(blocks), full[start:stop])


def test_rows_of_experts_come_one_expert_at_a_time(source):
    view = upcycled(source)
    name = 'model.transformer.blocks.0.ffn.experts.mlp.w2'
    F = tiny.HIDDEN
    blocks = view.rows(name, F // 2, 3 * F + 1)
    assert [len(block) for block in blocks] == [F // 2, F, F, 1]


def test_a_dense_tensor_is_read_once_for_all_experts(source, monkeypatch):
    reads = []
    dense = open_checkpoint(source)
    plain = dense.read

    def read(name: str, *args: int) -> torch.Tensor:
        reads.append(name)
        return plain(name, *args)

    monkeypatch.setattr(dense, 'read', read)
    model = tiny.build_moe()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    view = UpcycledCheckpoint(dense, shapes, UpcyclingConfig(source))
    whole(view, 'model.transformer.blocks.0.ffn.experts.mlp.w2')
    assert reads == ['model.transformer.blocks.0.ffn.down_proj.weight']


def test_routers_are_normal_and_depend_on_seed_and_layer_alone(source):

    def routers(view: UpcycledCheckpoint, layers=(0, 1, 2)) -> torch.Tensor:
        name = 'model.transformer.blocks.{}.ffn.router.layer.weight'
        return torch.stack([whole(view, name.format(i)) for i in layers])

    first = routers(upcycled(source))
    assert torch.equal(first, routers(upcycled(source), (2, 1, 0)).flip(0))
    assert not torch.equal(first, routers(upcycled(source, seed=18)))
    assert not torch.equal(first[0], first[1])
    assert abs(first.std().item() / 0.02 - 1) < 0.05
    assert abs(first.mean().item()) < 0.002


def test_tensors_keep_the_sources_dtype(tmp_path):
    path = tiny.save_dense(tiny.build_dense().bfloat16(), tmp_path / 'd.pt')
    view = upcycled(path)
    assert {info.dtype for info in view.tensors.values()} == {torch.bfloat16}
    for name in view.tensors:
        assert whole(view, name).dtype == torch.bfloat16


def test_what_can_not_be_planned_is_refused(source):
    moe = tiny.build_moe({'ffn_hidden_size': 64})
    with pytest.raises(CheckpointError, match='set model.ffn_config.ffn_hidd'):
        upcycled(source, moe)


def test_unknown_recipes_are_refused(source):
    with pytest.raises(ConfigError, match="recipe.name='clone': there is no"):
        upcycled(source, recipe={'name': 'clone'})
