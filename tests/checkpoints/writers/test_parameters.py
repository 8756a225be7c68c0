import pytest
import tiny
import torch

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.writers.parameters import (
    fill_parameters,
    local_rows,
)
from foundry_upcycle.errors import ConfigError


def test_parameters_are_filled_in_place_and_in_their_dtype(tmp_path):
    source = tiny.build_dense(seed=0).bfloat16()
    checkpoint = open_checkpoint(tiny.save_dense(source, tmp_path / 'd.pt'))
    target = tiny.build_dense(seed=1)
    parameters = dict(target.named_parameters())
    fill_parameters(checkpoint, parameters, parameters)
    for name, expected in source.named_parameters():
        assert parameters[name] is dict(target.named_parameters())[name]
        assert parameters[name].dtype == torch.float32
        assert torch.equal(parameters[name], expected.float())


def test_only_named_parameters_are_filled(tmp_path):
    source, target = tiny.build_dense(seed=0), tiny.build_dense(seed=1)
    checkpoint = open_checkpoint(tiny.save_dense(source, tmp_path / 'd.pt'))
    before = tiny.full_state(target)
    name = 'model.transformer.wte.weight'
    fill_parameters(checkpoint, dict(target.named_parameters()), [name])
    after = tiny.full_state(target)
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert changed == [name]


def test_parameters_without_memory_are_refused():
    with pytest.raises(
            ConfigError,
            match='model.init_device=.meta, still, for w.*fsdp_config, else cpu',
    ):
        local_rows('w', torch.empty(2, device='meta'))


def test_missing_rows_are_a_bug(tmp_path, monkeypatch):
    model = tiny.build_dense()
    checkpoint = open_checkpoint(tiny.save_dense(model, tmp_path / 'd.pt'))
    parameters = dict(model.named_parameters())
    name = 'model.transformer.wte.weight'
    short = parameters[name].detach()[:-3]
    monkeypatch.setattr(checkpoint, 'rows', lambda *_: iter([short]))
    with pytest.raises(RuntimeError, match='wte.weight: 3 rows were not read'):
        fill_parameters(checkpoint, parameters, [name])
