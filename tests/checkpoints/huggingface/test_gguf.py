"""GGUF files against the Hugging Face models that they were made from."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_gguf import N_KV_HEADS, TOKENS, permuted, write_gguf

from foundry_upcycle.checkpoints.huggingface.gguf import GGUFReader
from foundry_upcycle.checkpoints.huggingface.reader import HuggingFaceReader
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.errors import CheckpointError


def read_both(
    folder: Path,
    **changes: Any,
) -> tuple[GGUFReader, HuggingFaceReader]:
    """The same model from a GGUF file and from its Hugging Face folder."""
    original = write_gguf(folder / 'tiny.gguf', **changes)
    original.save_pretrained(folder / 'original')
    found = GGUFReader(str(folder / 'tiny.gguf'))
    return found, HuggingFaceReader(str(folder / 'original'))


def assert_same(found: Any, expected: Any):
    assert found.section == expected.section
    assert found.tensors == expected.tensors
    for name, info in expected.tensors.items():
        rows = [0, 0, info.shape[0]]
        assert torch.equal(found.read(name, *rows), expected.read(name, *rows))


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {
            'tied': False,
        },
        # As of Mistral-Nemo: more channels in heads than in the model.
        {
            'sizes': {
                'head_dim': 24,
            },
        },
        {
            'architecture': 'qwen2',
        },
        # Queries and keys with norms, and in the order of transformers.
        {
            'architecture': 'qwen3',
            'tied': False,
            'sizes': {
                'head_dim': 32,
            },
        },
        # More rows than tokens, as where sizes are padded.
        {
            'sizes': {
                'vocab_size': 320,
            },
        },
        # What files say of what they don't have.
        {
            'llama__expert_count': 0,
            'llama__expert_used_count': 0,
            'llama__vocab_size': len(TOKENS),
            'llama__rope__scaling__type': 'none',
            'llama__rope__scaling__factor': 4.0,
            'llama__attention__head_count_kv': [N_KV_HEADS] * 2,
        },
    ],
    ids=str,
)
def test_it_is_the_original(tmp_path: Path, changes: dict[str, Any]):
    assert_same(*read_both(tmp_path, **changes))


def test_of_linear_rope(tmp_path: Path):
    rope = {'rope_type': 'linear', 'factor': 4.0}
    both = read_both(
        tmp_path,
        sizes={'rope_scaling': rope},
        llama__rope__scaling__type='linear',
        llama__rope__scaling__factor=4.0,
    )
    assert_same(*both)


@pytest.mark.parametrize('dim', [0, 1])
def test_parts_of_tensors(tmp_path: Path, dim: int):
    write_gguf(tmp_path / 'tiny.gguf')
    reader = GGUFReader(str(tmp_path / 'tiny.gguf'))
    for module in ('attn.Wqkv', 'attn.out_proj', 'ffn.down_proj'):
        name = f'model.transformer.blocks.1.{module}.weight'
        shape = reader.tensors[name].shape
        whole = reader.read(name, 0, 0, shape[0])
        # Across heads, and across the parts of a fused tensor.
        for start, stop in ((0, 1), (3, 3), (7, 40), (50, shape[dim])):
            found = reader.read(name, dim, start, stop)
            assert torch.equal(found, whole.narrow(dim, start, stop - start))


def test_split_files(tmp_path: Path):
    write_gguf(tmp_path / 'm.gguf', parts=9)
    first = tmp_path / 'm-00001-of-00003.gguf'
    write_gguf(tmp_path / 'whole.gguf')
    whole = GGUFReader(str(tmp_path / 'whole.gguf'))
    assert_same(open_checkpoint(str(first)), whole)
    names = [f'm-0000{i}-of-00003.gguf' for i in (1, 2, 3)]
    assert sorted(open_checkpoint(str(first)).files.n_bytes) == names
    with pytest.raises(CheckpointError,
                       match=f'part 2 of 3.* first, {names[0]}'):
        GGUFReader(str(tmp_path / names[1]))
    (tmp_path / names[2]).rename(tmp_path / 'away')
    with pytest.raises(CheckpointError, match=f'3 parts, {names[2]} is miss'):
        GGUFReader(str(first))
    # The second part again, as the third.
    (tmp_path / names[2]).write_bytes((tmp_path / names[1]).read_bytes())
    with pytest.raises(CheckpointError,
                       match='it is part 2 of 3.* name, part 3'):
        GGUFReader(str(first))
    first.rename(tmp_path / 'renamed.gguf')
    with pytest.raises(CheckpointError, match='part 1 of 3, .* part 1 of 1'):
        GGUFReader(str(tmp_path / 'renamed.gguf'))


def test_parts_of_two_models(tmp_path: Path):
    write_gguf(tmp_path / 'm.gguf', parts=9)
    write_gguf(tmp_path / 'untied.gguf', parts=9, tied=False)
    other = tmp_path / 'untied-00003-of-00003.gguf'
    other.rename(tmp_path / 'm-00003-of-00003.gguf')
    with pytest.raises(CheckpointError,
                       match='hold 21 tensors, and it says 20'):
        GGUFReader(str(tmp_path / 'm-00001-of-00003.gguf'))


@pytest.mark.parametrize(
    'changes,match',
    [
        ({
            'tensors': {
                'blk.0.attn_q.bias': np.ones(64, np.float32),
            },
        }, 'blk.0.attn_q.bias would be lost: .* its metadata describes'),
        ({
            'tensors': {
                'rope_factors_long.weight': np.ones(8, np.float32),
            },
        }, 'rope_factors_long.weight would be lost'),
        ({
            'llama__block_count': 3,
        }, 'it has no blk.2.attn_norm.weight. Fix: copy it again, or give'),
        ({
            'llama__block_count': 2**31,
        }, 'its metadata says 2147483648 layers'),
        ({
            'llama__feed_forward_length': 97,
        }, r'shape \(96, 64\), its metadata says \(97, 64\)'),
        ({
            'tensors': {
                'x': np.ones(8, np.int32),
            },
        }, 'x is of the type I32, which the package gguf does not compute'),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], match: str):
    write_gguf(tmp_path / 'tiny.gguf', **changes)
    with pytest.raises(CheckpointError, match=match):
        GGUFReader(str(tmp_path / 'tiny.gguf'))


def test_a_file_that_was_cut_while_open(tmp_path: Path):
    file = tmp_path / 'tiny.gguf'
    write_gguf(file)
    reader = GGUFReader(str(file))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match='tiny.gguf: it changed while'):
        for name, info in reader.tensors.items():
            reader.read(name, 0, 0, info.shape[0])


def test_numbers_that_are_none_are_warned_of(tmp_path: Path):
    original = write_gguf(tmp_path / 'tiny.gguf')
    weight = original.state_dict()['model.layers.0.self_attn.q_proj.weight']
    row = permuted(weight.numpy(), 4)[3].tobytes()
    content = (tmp_path / 'tiny.gguf').read_bytes()
    assert content.count(row) == 1
    damaged = np.float32(np.nan).tobytes() + row[4:]
    (tmp_path / 'tiny.gguf').write_bytes(content.replace(row, damaged))
    reader = GGUFReader(str(tmp_path / 'tiny.gguf'))
    name = 'model.transformer.blocks.0.attn.Wqkv.weight'
    with pytest.warns(UserWarning, match='blk.0.attn_q.weight has NaN'):
        rows = reader.read(name, 0, 0, 64)
    # The row 3 of a file is the second of the second half of a head.
    assert rows.isnan().nonzero().tolist() == [[9, 0]]


def test_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, 'gguf', None)
    with pytest.raises(CheckpointError, match='Fix: run `pip install gguf`'):
        GGUFReader(str(tmp_path / 'model.gguf'))
