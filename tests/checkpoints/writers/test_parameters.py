import pytest
import tiny
import torch

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.plan import make_plan
from foundry_upcycle.checkpoints.writers.parameters import (
    ParameterWriter,
    local_rows,
)
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.recipes import RECIPES


def upcycle(path: str, model, seed: int = 17, reverse: bool = False):
    reader = open_checkpoint(path)
    parameters = dict(model.named_parameters())
    shapes = {n: tuple(p.shape) for n, p in parameters.items()}
    plan = make_plan(reader, shapes)
    writer = ParameterWriter(reader, RECIPES['copy'], 0.02, seed)
    writer.write(reversed(plan) if reverse else plan, parameters)
    return model


def test_experts_are_the_dense_layer(tmp_path):
    dense = tiny.build_dense()
    moe = upcycle(tiny.save_dense(dense, tmp_path / 'd.pt'), tiny.build_moe())
    for block, source in zip(
            moe.model.transformer.blocks,
            dense.model.transformer.blocks,
            strict=True,
    ):
        mlp = block.ffn.experts.mlp
        for expert in range(8):
            for name, weight in (
                ('w1', source.ffn.gate_proj.weight),
                ('v1', source.ffn.up_proj.weight),
                ('w2', source.ffn.down_proj.weight.t()),
            ):
                assert torch.equal(mlp.weight_EFD(name)[expert], weight)
        assert torch.equal(block.attn.Wqkv.weight, source.attn.Wqkv.weight)


def test_routers_are_normal_and_depend_on_seed_and_layer_alone(tmp_path):
    path = tiny.save_dense(tiny.build_dense(), tmp_path / 'd.pt')

    def routers(**kwargs) -> torch.Tensor:
        model = upcycle(path, tiny.build_moe(seed=9), **kwargs)
        return torch.stack([m.router.layer.weight for m in model.moe_layers])

    first = routers()
    assert torch.equal(first, routers(reverse=True))
    assert not torch.equal(first, routers(seed=18))
    assert not torch.equal(first[0], first[1])
    assert abs(first.std().item() / 0.02 - 1) < 0.05
    assert abs(first.mean().item()) < 0.002


def test_weights_are_converted_to_the_models_dtype(tmp_path):
    dense = tiny.build_dense().bfloat16()
    moe = upcycle(tiny.save_dense(dense, tmp_path / 'd.pt'), tiny.build_moe())
    weight = moe.model.transformer.blocks[0].ffn.experts.mlp.v1
    assert weight.dtype == torch.float32
    source = dense.model.transformer.blocks[0].ffn.up_proj.weight
    assert torch.equal(weight[:96], source.float())


def test_parameters_without_memory_are_refused():
    with pytest.raises(
            ConfigError,
            match='model.init_device=.meta, still, for w.*fsdp_config, else cpu',
    ):
        local_rows('w', torch.empty(2, device='meta'))
