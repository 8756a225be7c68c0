import pytest
import tiny
import torch

from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.conversion.streamed import streamed_logits


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('build', [tiny.build_dense, tiny.build_moe])
def test_equals_the_whole_model(tmp_path, build, tied: bool):
    model = build(tie_word_embeddings=tied).eval()
    checkpoint = open_checkpoint(tiny.save_dense(model, tmp_path / 'm.pt'))
    batch = tiny.make_batch()
    with torch.no_grad():
        expected = model(batch).logits
    found = streamed_logits(checkpoint, batch['input_ids'])
    assert torch.equal(found, expected)


def test_one_block_is_held_at_a_time(tmp_path, monkeypatch):
    path = tiny.save_dense(tiny.build_dense(), tmp_path / 'm.pt')
    checkpoint = open_checkpoint(path)
    held, most = set(), 0
    plain = checkpoint.read

    class Counted(torch.Tensor):

        def __del__(self):
            held.discard(id(self))

    def read(name: str, *args: int) -> torch.Tensor:
        nonlocal most
        tensor = plain(name, *args).clone().as_subclass(Counted)
        held.add(id(tensor))
        most = max(most, len(held))
        return tensor

    monkeypatch.setattr(checkpoint, 'read', read)
    streamed_logits(checkpoint, tiny.make_batch()['input_ids'])
    block = [n for n in checkpoint.tensors if '.blocks.0.' in n]
    assert 0 < most <= len(block)


def test_weights_are_rounded_as_they_would_be_stored(tmp_path):
    model = tiny.build_dense().eval()
    with torch.no_grad():
        model.model.transformer.norm_f.weight.add_(0.001)  # Rounding shows.
    checkpoint = open_checkpoint(tiny.save_dense(model, tmp_path / 'm.pt'))
    batch = tiny.make_batch()
    dtypes = dict.fromkeys(checkpoint.tensors, torch.bfloat16)
    dtypes.pop('model.transformer.norm_f.weight')
    found = streamed_logits(checkpoint, batch['input_ids'], dtypes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # And no buffer.
            if 'norm_f' not in name:
                parameter.copy_(parameter.bfloat16())
        expected = model(batch).logits
    assert torch.equal(found, expected)
