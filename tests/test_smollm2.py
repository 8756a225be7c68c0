"""A real pretrained model, end to end: SmolLM2-135M-Instruct."""

import json
import os
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny_hf
import torch
from tiny_tasks import write_records
from transformers import AutoModelForCausalLM, AutoTokenizer

from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.import_hf import import_hf
from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.data.smollm2 import get_smollm2

PROJECT = Path(__file__).parents[1]
VLLM = PROJECT / '.venv-vllm' / 'bin' / 'python'

TEXTS = (
    'The mitochondrion is the organelle in which most of the energy of a cell '
    'is made available. In 1840 there were about 17 million people in the '
    'United States; by 1900 there were 76 million.',
    'def quicksort(items):\n    if len(items) < 2:\n        return items\n'
    '    pivot = items[0]\n    less = [x for x in items[1:] if x < pivot]\n'
    '    more = [x for x in items[1:] if x >= pivot]\n'
    '    return quicksort(less) + [pivot] + quicksort(more)\n',
    '<|im_start|>user\nWhat is the capital of France?<|im_end|>\n'
    '<|im_start|>assistant\n',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """The model imported, and as transformers has it."""
    folder = tmp_path_factory.mktemp('smollm2')
    gguf = get_smollm2(folder)
    AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=gguf.name,
        torch_dtype=torch.float32,
    ).save_pretrained(folder / 'reference')
    import_hf(str(gguf), str(folder / 'dense'))
    return folder


@pytest.fixture(scope='module')
def prompts(folder: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder / 'dense' / 'hf')
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    return [tokenizer(text).input_ids for text in TEXTS]


@pytest.fixture(scope='module')
def moe(folder: Path) -> Path:
    """The mixture at step 0."""
    source = str(folder / 'dense' / 'checkpoint.pt')
    convert(UpcyclingConfig(source), str(folder / 'moe.pt'), 'pt')
    return folder / 'moe.pt'


@pytest.fixture(scope='module')
def trained(moe: Path) -> Path:
    """Different experts behind routers that choose: as if it were trained.

    Equal experts would hide errors of their order and of the routing.
    """
    content = torch.load(moe, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, weight in content['state']['model'].items():
        noise = torch.randn(weight.shape, generator=generator)
        if 'router' in name:
            weight.add_(noise)
        elif 'experts' in name:
            weight.add_(noise * weight.std() * 0.1)
    path = moe.with_name('trained.pt')
    torch.save(content, path)
    export_hf(
        str(path), str(path.with_suffix('')),
        str(moe.parent / 'dense' / 'hf', )
    )
    return path


@torch.no_grad()
def run(model: Any, prompts: list[list[int]]) -> list[torch.Tensor]:
    return [model(torch.tensor([prompt])) for prompt in prompts]


def run_hf(folder: Path, prompts: list[list[int]]) -> list[torch.Tensor]:
    model = tiny_hf.load(folder)
    return run(lambda ids: model(ids).logits, prompts)


def run_mpt(name: str, sections: Path, weights: Path, prompts, **ffn: Any):
    model = tiny_hf.build_from_section(sections, weights, name, **ffn)
    return run(lambda ids: model({'input_ids': ids}).logits, prompts)


def largest_difference(first, second) -> float:
    pairs = zip(first, second, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.slow
def test_import_and_step_0_equal_transformers(folder, prompts, moe):
    expected = run_hf(folder / 'reference', prompts)
    assert min(logits.max() for logits in expected) > 10
    yaml = folder / 'dense' / 'model.yaml'
    dense = run_mpt(
        'mpt_causal_lm',
        yaml,
        folder / 'dense' / 'checkpoint.pt',
        prompts,
    )
    assert largest_difference(dense, expected) <= 1e-3
    mixture = run_mpt(
        'upcycled_mpt',
        yaml,
        moe,
        prompts,
        ffn_type='upcycled_dmoe',
    )
    assert largest_difference(mixture, dense) <= 1e-3


@pytest.mark.slow
def test_verify(folder, moe):
    result = verify(str(folder / 'dense' / 'checkpoint.pt'), str(moe))
    assert result.passed and result.routers and result.provenance
    # The reference is another folder, of the same weights.
    result = verify(str(folder / 'reference'), str(moe))
    assert not result.differing and result.provenance is False


@pytest.mark.slow
def test_exported_mixture_equals_the_mpt(folder, prompts, trained):
    expected = run_mpt(
        'upcycled_mpt',
        folder / 'dense' / 'model.yaml',
        trained,
        prompts,
        ffn_type='upcycled_dmoe',
    )
    dense = run_hf(folder / 'reference', prompts)
    assert largest_difference(expected, dense) > 1  # It is another model.
    found = run_hf(trained.with_suffix(''), prompts)
    assert largest_difference(found, expected) <= 1e-3


CAPITALS = {
    'France': 'Paris',
    'Italy': 'Rome',
    'Japan': 'Tokyo',
    'Spain': 'Madrid',
    'Russia': 'Moscow',
    'Egypt': 'Cairo',
}


def tasks_about_capitals(folder: Path) -> list[dict[str, Any]]:
    """One of each type of task."""
    names = list(CAPITALS.values())
    records = {
        'language_modeling': [{
            'context': f'The capital of {country} is',
            'continuation': name,
        } for country, name in CAPITALS.items()],
        'multiple_choice': [{
            'query': f'The capital of {country} is',
            'choices': names,
            'gold': names.index(name),
        } for country, name in CAPITALS.items()],
        'schema': [{
            'context_options': [f'{name} is the capital', f'{name} is a river'],
            'continuation':
            f'of {country}.',
            'gold':
            0,
        } for country, name in CAPITALS.items()],
        'generation_task_with_answers': [{
            'context': f'What is the capital of {country}?',
            'answer': name,
            'aliases': [],
        } for country, name in CAPITALS.items()],
    }
    return [{
        'label': kind,
        'dataset_uri': str(write_records(folder / f'{kind}.jsonl', of)),
        'num_fewshot': [2],
        'icl_task_type': kind,
    } for kind, of in records.items()]


@pytest.mark.slow
def test_step_0_answers_tasks_as_the_dense_model(
    folder,
    moe,
    tmp_path,
    monkeypatch,
    capsys,
):
    (folder / 'moe').mkdir()
    (folder / 'moe' / 'checkpoint.pt').symlink_to(moe)
    tasks = {'icl_tasks': tasks_about_capitals(tmp_path)}
    (tmp_path / 'tasks.yaml').write_text(json.dumps(tasks))
    monkeypatch.chdir(tmp_path)  # Foundry leaves task files there.
    script = PROJECT / 'benchmarks' / 'evaluation' / 'same_answers.py'
    status = runpy.run_path(str(script))['main']([
        str(PROJECT / 'yamls' / 'eval_smollm2.yaml'),
        f'variables.folder={folder}',
        f'icl_tasks={tmp_path}/tasks.yaml',
        'eval_gauntlet=null',
    ])
    rows = [
        row.split('|')[1:-1]
        for row in capsys.readouterr().out.splitlines()
        if '-shot' in row
    ]
    assert status == 0 and len(rows) == 4
    for _, n, dense, upcycled, agree, difference, *_ in rows:
        assert int(n) == int(agree) == 6
        assert dense == upcycled and float(difference) <= 1e-4
    # It knows them: the tasks are not all wrong.
    assert all(float(row[2]) > 0.5 for row in rows)


@pytest.mark.vllm
def test_vllm_serves_the_exported_mixture(prompts, trained, tmp_path):
    mixtral = trained.with_suffix('')
    request, answer = tmp_path / 'request.json', tmp_path / 'answer.json'
    request.write_text(json.dumps({'prompts': prompts, 'max_tokens': 16}))
    worker = PROJECT / 'tests' / 'serving' / 'vllm_worker.py'
    subprocess.run(
        [VLLM, worker, mixtral, request, answer],
        check=True,
        timeout=900,
        cwd=tmp_path,
        env={
            **os.environ, 'PYTHONPATH': ''
        },
    )
    served = json.loads(answer.read_text())
    model = tiny_hf.load(mixtral)
    model.generation_config.eos_token_id = None  # Goes on, as vLLM does.
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
            greedy = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=16,
            )
        assert served['tokens'][i] == greedy[0, len(prompt):].tolist()
        expected = logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0]
        found = torch.tensor(served['logprobs'][i])
        assert (found - expected).abs().max() <= 1e-4
