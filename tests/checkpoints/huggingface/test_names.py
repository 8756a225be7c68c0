import pytest
import tiny
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from foundry_upcycle.checkpoints.huggingface.architectures import ARCHITECTURES
from foundry_upcycle.checkpoints.huggingface.names import (
    hf_shapes,
    mpt_shapes,
    parts,
    zero_shapes,
)
from foundry_upcycle.checkpoints.huggingface.to_huggingface import (
    to_huggingface,
)
from foundry_upcycle.checkpoints.huggingface.to_mpt import to_mpt

SIZES = {
    'vocab_size': 128,
    'hidden_size': 64,
    'intermediate_size': 40,
    'moe_intermediate_size': 40,
    'shared_expert_intermediate_size': 64,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'num_experts': 4,
    'num_local_experts': 4,
    'num_experts_per_tok': 2,
    'head_dim': 32,
    'pad_token_id': None,
}
# Of those that the transformers of LLM Foundry knows.
KNOWN = [name for name, a in ARCHITECTURES.items() if a.config_of is None]


def hf_config(model_type):
    config_of = ARCHITECTURES[model_type].config_of or model_type
    known = AutoConfig.for_model(config_of).to_dict().keys() | {'head_dim'}
    sizes = {k: v for k, v in SIZES.items() if k in known}
    if ARCHITECTURES[model_type].has_shared_expert:
        sizes['head_dim'] = 16  # It knows no other.
    if ARCHITECTURES[model_type].has_dense_layers:
        sizes['mlp_only_layers'] = [0]
    return {'model_type': model_type, **sizes}


@pytest.mark.parametrize('model_type', KNOWN)
def test_names_and_shapes_are_those_of_transformers(model_type):
    config = hf_config(model_type)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config),
        )
    expected = {k: tuple(v.shape) for k, v in model.named_parameters()}
    if model.config.tie_word_embeddings:
        expected.pop('lm_head.weight', None)
    section = to_mpt(config)
    found = hf_shapes(parts(section, model_type))
    assert found | zero_shapes(section, model_type) == expected


@pytest.mark.parametrize('model_type', ARCHITECTURES)
@pytest.mark.parametrize('head_dim', [16, 32])
def test_names_and_shapes_are_those_of_mpt(model_type, head_dim):
    section = to_mpt({**hf_config(model_type), 'head_dim': head_dim})
    if ARCHITECTURES[model_type].is_moe:
        model = tiny.build_moe(section.pop('ffn_config'), **section)
    else:
        model = tiny.build_dense(**section)
    expected = {k: tuple(v.shape) for k, v in model.named_parameters()}
    config = model.config.to_dict()
    assert mpt_shapes(parts(config, model_type)) == expected


@pytest.mark.parametrize('model_type', ARCHITECTURES)
def test_each_row_is_in_one_part(model_type):
    rows: dict[str, int] = {}
    for part in parts(to_mpt(hf_config(model_type)), model_type):
        assert part.start == rows.get(part.mpt, 0) < part.stop
        rows[part.mpt] = part.stop
        assert part.hf_start == rows.get(part.hf, 0) < part.hf_stop
        rows[part.hf] = part.hf_stop


@pytest.mark.parametrize('model_type', ARCHITECTURES)
def test_both_directions_are_inverse(model_type):
    section = to_mpt(hf_config(model_type))
    assert to_mpt(to_huggingface(section, model_type)) == section
    for part in parts(section, model_type):
        stored = torch.randn(part.shape)
        there = part.to_mpt(stored)
        assert there.shape == (part.stop - part.start, *part.mpt_columns)
        back = part.to_huggingface(there)
        if part.is_affine:
            torch.testing.assert_close(back, stored, atol=2e-7, rtol=2e-7)
        else:
            assert torch.equal(back, stored)
