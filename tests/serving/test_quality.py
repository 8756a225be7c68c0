"""What is shrunk is served, and the harness measures its quality: one study.

A trained mixture stands in by a random one whose experts differ. What the
servers say of text is compared with what PyTorch makes of the checkpoints.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Optional

import pytest
import tiny
import torch
import yaml
from served import PYTHON, continued, make_distinct
from tiny_shrunk import load_in_foundry, save_calibration

from foundry_upcycle.config import ShrinkingConfig
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.shrink import shrink

PROJECT = Path(__file__).parents[2]
# On a CPU vLLM has no heads of less than 32 dimensions.
SHAPE = {'d_model': 128}
WAYS: dict[str, dict[str, Any]] = {
    'kept': {
        'experts': 4,
        'by': 'load',
    },
    'merged': {
        'experts': 3,
        'by': 'merge',
    },
    'mean': {
        'dense': 'mean',
    },
    'concat': {
        'dense': 'concat',
        'keep': 2,
        'by': 'norm',
    },
}
DOCUMENTS = [
    tokens[:n] for tokens, n in zip(
        tiny.make_batch(size=5)['input_ids'].tolist(),
        (32, 32, 20, 9, 2),
    )
]
# Shorter than the documents: they are read in pieces.
MAX_MODEL_LEN = 24
GREEDY = {'prompts': 3, 'input_tokens': 8, 'output_tokens': 8}

pytestmark = [
    pytest.mark.vllm,
    # None of these models has a tokenizer.
    pytest.mark.filterwarnings(
        'ignore:.*no tokenizer:foundry_upcycle.errors.UpcyclingWarning',
    ),
]


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Name -> file of Composer's; of each its export lies beside it."""
    folder = tmp_path_factory.mktemp('checkpoints')
    models = {
        'dense': tiny.build_dense(**SHAPE),
        'moe': tiny.build_moe(**SHAPE),
    }
    found = {
        name: tiny.save_dense(make_distinct(model), folder / f'{name}.pt')
        for name, model in models.items()
    }
    calibration = save_calibration(found['moe'], folder / 'moe.json')
    for name, way in WAYS.items():
        given: Optional[str] = None if name == 'mean' else calibration
        found[name] = str(folder / f'{name}.pt')
        config = ShrinkingConfig(**way, has_calibration=given is not None)
        shrink(found['moe'], found[name], config, given)
    for path in found.values():
        export_hf(path, f'{path}_hf')
    return found


@pytest.fixture(scope='module')
def measured(checkpoints, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Name of a model -> its quality.json."""
    folder = tmp_path_factory.mktemp('study')
    texts = folder / 'texts.jsonl'
    texts.write_text(
        ''.join(
            json.dumps({
                'prompt': ids,
                'bytes': 3 * len(ids)
            }) + '\n' for ids in DOCUMENTS
        ),
    )
    folders = {
        name: {
            'folder': f'{path}_hf'
        }
        for name, path in checkpoints.items()
    }
    size = {name: folders.pop(name) for name in ('dense', 'moe')}
    study = {
        'name': 'shrunk',
        'folder': str(folder / 'out'),
        'seed': 17,
        'runs': 1,
        'load_format': 'real',
        'workload': {
            'input_tokens': 8,
            'output_tokens': 4,
            'requests': 8,
            'warmup_requests': 1,
        },
        'rates': {
            'step': 1,
            'start': 4,
            'stop': 4,
            'unbounded': False,
        },
        'engine': {
            'dtype': 'float32',
            'max_model_len': MAX_MODEL_LEN,
            'enforce_eager': True,
            'kv_cache_gib': 0.125,
        },
        'top_k': [2],
        'variants': ['base'],
        'quality': {
            'texts': str(texts),
            'greedy': GREEDY,
        },
        'sizes': {
            'tiny': {
                **size, 'others': folders
            }
        },
    }
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump(study))
    for command in ('run', 'report'):
        subprocess.run(
            [PYTHON, '-m', 'benchmarks.inference', command, path],
            check=True,
            timeout=3000,
            cwd=PROJECT,
            env={
                **os.environ, 'PYTHONPATH': ''
            },
        )
    found = {}
    for record in (folder / 'out/quality').glob('*/quality.json'):
        content = json.loads(record.read_text())
        config = content['config']
        found[config.get('name', config['architecture'])] = content
    return found


@pytest.mark.parametrize('name', ['dense', 'moe', *WAYS])
@torch.no_grad()
def test_a_server_says_what_the_checkpoint_computes(
    name,
    checkpoints,
    measured,
):
    model = load_in_foundry(checkpoints[name]).eval().model
    quality = measured[name]['quality']
    assert quality['documents']['tokens'] == [len(d) - 1 for d in DOCUMENTS]
    assert quality['documents']['bytes'] == [3 * len(d) for d in DOCUMENTS]

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return model(ids).logits

    for index, document in enumerate(DOCUMENTS):
        nll, likeliest = 0.0, []
        # An engine's longest piece leaves a place for one token of an answer.
        # Of a longer document what is left is scored after as many tokens.
        length = MAX_MODEL_LEN - 1
        for end in sorted({min(length, len(document)), len(document)}):
            ids = torch.tensor([document[max(end - length, 0):end]])
            n = end - 1 - len(likeliest)
            logprobs = logits(ids)[0, -1 - n:-1].log_softmax(-1)
            nll -= float(logprobs.gather(1, ids[0, -n:, None]).sum())
            likeliest += logprobs.argmax(-1).tolist()
        found = quality['documents']['nll'][index]
        assert found == pytest.approx(nll, abs=1e-4 * len(document))
        assert quality['likeliest'][index] == likeliest
    answers = [
        continued(
            logits,
            document[:GREEDY['input_tokens']],
            GREEDY['output_tokens'],
        ) for document in DOCUMENTS[:GREEDY['prompts']]
    ]
    assert quality['greedy'] == answers
