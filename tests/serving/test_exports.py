"""What is exported computes the same in vLLM and in transformers 5."""

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import pytest
import tiny
import tiny_hf
import torch
from served import PYTHON, continued, make_distinct

from foundry_upcycle.conversion.export_hf import export_hf

PROJECT = Path(__file__).parents[2]

MAX_TOKENS = 8
TOLERANCE = 1e-4

# Four heads, two groups. On a CPU vLLM has no heads of less than 32 dimensions.
SHAPE = {'d_model': 128}
# The wavelengths of a head are 6, 11, 20, 35, ... positions: those below 32 / 4
# stay, those above 32 / 1 are stretched, and those between partly.
LLAMA3_ROPE = {
    'type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
}
NO_ROPE = {
    'learned_pos_emb': False,
    'block_overrides': {
        'order': [{
            'name': 'no_rope',
        }, {
            'name': 'default',
            'repeat': 2,
        }],
        'overrides': {
            'no_rope': {
                'attn_config': {
                    'nope': True,
                },
            },
        },
    },
}
QK_NORM = {'qk_gn': True, 'norm_type': 'rmsnorm', 'norm_eps': 1e-5}


class Case(NamedTuple):
    """An exported model.

    Attributes:
        model_type: What ``export_hf`` makes of it.
        changes: To the tiny model.
        attn: Changes to its ``attn_config``.
        is_moe: Whether it is a mixture of experts.
        moe_layers: Of a mixture, the blocks that have experts.
    """
    model_type: str
    changes: dict[str, Any] = {}
    attn: dict[str, Any] = {}
    is_moe: bool = True
    moe_layers: Optional[list[int]] = None


CASES = {
    'mixtral, llama3 rope':
    Case('mixtral', {'max_seq_len': 64}, {'rope_hf_config': LLAMA3_ROPE}),
    'mixtral, tied':
    Case('mixtral', {'tie_word_embeddings': True}),
    'mixtral, a head that scales':
    Case('mixtral', {
        'tie_word_embeddings': True,
        'logit_scale': 0.3
    }),
    'qwen3_moe':
    Case('qwen3_moe', attn=QK_NORM),
    'qwen3_moe, some layers':
    Case('qwen3_moe', attn=QK_NORM, moe_layers=[1]),
    'qwen2_moe':
    Case('qwen2_moe', {'attention_bias': True}),
    'qwen2_moe, some layers':
    Case('qwen2_moe', {'attention_bias': True}, moe_layers=[0, 2]),
    'granite':
    Case('granite', {'logit_scale': 0.3}, is_moe=False),
    'smollm3':
    Case('smollm3', NO_ROPE, is_moe=False),
    'llama, untied':
    Case('llama', is_moe=False),
}


def build(case: Case) -> Any:
    """A random model: experts that differ, a router that chooses clearly."""
    attn = {**tiny.DENSE['attn_config'], **case.attn}
    changes = copy.deepcopy({**SHAPE, **case.changes, 'attn_config': attn})
    if case.is_moe:
        ffn = {'moe_layers': case.moe_layers}
        model = tiny.build_moe(ffn, **changes)
    else:
        model = tiny.build_dense(**changes)
    return make_distinct(model)


def reference(name: str,
              folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits by the transformers of LLM Foundry, or the MPT itself."""
    if CASES[name].model_type == 'smollm3':  # Which those do not know.
        mpt = build(CASES[name]).eval().model
        return lambda ids: mpt(ids).logits
    model = tiny_hf.load(folder)
    return lambda ids: model(ids).logits


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> dict[str, Path]:
    """Every case, exported."""
    folders = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp('exported')
        source = tiny.save_dense(build(case), folder / 'mpt.pt')
        export_hf(source, str(folder / 'hf'))
        config = json.loads((folder / 'hf' / 'config.json').read_text())
        assert config['model_type'] == case.model_type
        folders[name] = folder / 'hf'
    return folders


@pytest.fixture(scope='module')
def prompts() -> list[list[int]]:
    """Of different lengths; the longest, continued, fills the positions."""
    ids = tiny.make_batch(size=3)['input_ids'].tolist()
    lengths = (tiny.SEQ - MAX_TOKENS, 13, 5)
    return [tokens[:length] for tokens, length in zip(ids, lengths)]


def run_worker(
    worker: str,
    folders: dict[str, Path],
    prompts: list[list[int]],
    tmp_path: Path,
) -> dict[str, Any]:
    """What a worker answers for each folder; importing vLLM takes long."""
    request = tmp_path / 'request.json'
    request.write_text(
        json.dumps({
            'prompts': prompts,
            'max_tokens': MAX_TOKENS
        }),
    )
    answers = {name: tmp_path / f'{i}.json' for i, name in enumerate(folders)}
    arguments = []
    for name, folder in folders.items():
        arguments += [folder, request, answers[name]]
    subprocess.run(
        [PYTHON, PROJECT / 'tests' / 'serving' / worker, *arguments],
        check=True,
        timeout=1800,
        cwd=tmp_path,
        env={
            **os.environ, 'PYTHONPATH': ''
        },
    )
    return {name: json.loads(a.read_text()) for name, a in answers.items()}


@pytest.fixture(scope='module')
def in_vllm(folders, prompts, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp('vllm')
    return run_worker('vllm_worker.py', folders, prompts, folder)


@pytest.fixture(scope='module')
def in_transformers_5(folders, prompts, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp('transformers')
    return run_worker('transformers_worker.py', folders, prompts, folder)


@pytest.mark.vllm
@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_vllm_computes_the_same(name, folders, prompts, in_vllm):
    logits = reference(name, folders[name])
    served = in_vllm[name]
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        logprobs = logits(ids)[0].log_softmax(-1)
        expected = logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0]
        found = torch.tensor(served['logprobs'][i])
        assert (found - expected).abs().max() <= TOLERANCE
        assert served['tokens'][i] == continued(logits, prompt, MAX_TOKENS)


@pytest.mark.vllm
@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_transformers_5_computes_the_same(
    name,
    folders,
    prompts,
    in_transformers_5,
):
    answer = in_transformers_5[name]
    assert answer['version'].startswith('5.')
    assert {'missing_keys', 'unexpected_keys'} <= {*answer['info']}
    assert not any(answer['info'].values()), answer['info']
    logits = reference(name, folders[name])
    for prompt, found in zip(prompts, answer['logits'], strict=True):
        expected = logits(torch.tensor([prompt]))[0]
        assert (torch.tensor(found) - expected).abs().max() <= TOLERANCE
