import pytest
import tiny_hf
import torch
from transformers import AutoModelForCausalLM

import foundry_upcycle
from foundry_upcycle.errors import CheckpointError, ConfigError


@pytest.mark.parametrize(
    'model_type,mixture,changes',
    [
        ('llama', 'mixtral', {}),
        ('llama', 'mixtral', {
            'tie_word_embeddings': True,
        }),
        ('qwen3', 'qwen3_moe', {}),
    ],
)
@torch.no_grad()
def test_a_model_in_memory_is_the_mixture_on_disk(
    model_type,
    mixture,
    changes,
    tmp_path,
):
    dense = tiny_hf.build(model_type, **changes).eval()
    dense.generation_config.max_new_tokens = 3
    before = {k: v.clone() for k, v in dense.state_dict().items()}
    moe = foundry_upcycle.upcycle(dense, moe_num_experts=4, seed=3)
    assert moe.config.model_type == mixture
    torch.testing.assert_close(tiny_hf.logits(moe), tiny_hf.logits(dense))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(moe.generate(ids), dense.generate(ids))
    # The model it is made of stays what it was.
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, before[name])
    for parameter in moe.parameters():
        parameter.zero_()
    assert all(parameter.any() for parameter in dense.parameters())

    tiny_hf.save(tmp_path / 'dense', dense)
    foundry_upcycle.convert(
        foundry_upcycle.UpcyclingConfig(str(tmp_path / 'dense'), seed=3),
        str(tmp_path / 'moe'),
        'safetensors',
        moe_num_experts=4,
        with_tokenizer=False,
    )
    on_disk = AutoModelForCausalLM.from_pretrained(tmp_path / 'moe')
    again = foundry_upcycle.upcycle(dense, moe_num_experts=4, seed=3)
    expected = on_disk.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name])
    with pytest.raises(CheckpointError, match='mixture'):
        foundry_upcycle.upcycle(again)


def test_it_is_trained():
    moe = foundry_upcycle.upcycle(tiny_hf.build_llama().train())
    ids = torch.arange(8)[None]
    moe(ids, labels=ids).loss.backward()
    gate = moe.model.layers[0].block_sparse_moe.gate.weight
    assert moe.training and gate.grad.any()


def test_what_can_not_be_expressed_is_refused():
    with pytest.raises(ConfigError, match='moe_top_k=9'):
        foundry_upcycle.upcycle(tiny_hf.build_llama(), moe_top_k=9)
