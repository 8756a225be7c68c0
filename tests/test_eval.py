"""``llmfoundry eval`` on an upcycled model."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from llmfoundry.command_utils import eval_from_yaml
from omegaconf import OmegaConf

from foundry_upcycle.data.tokenizer import train_tokenizer
from foundry_upcycle.errors import ConfigError

VOCAB = 280


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # Foundry leaves task files there.


def write_config(folder: Path, **changes: Any) -> str:
    """A task of five records, a tokenizer and an eval YAML."""
    # Two letters a word: enough pairs for the tokens beyond the bytes.
    words = [a + b for a in string.ascii_lowercase for b in 'aeiou']
    train_tokenizer([' '.join(words)], VOCAB, folder / 'tokenizer')
    records = [{'context': f'a {w} is a', 'continuation': w} for w in words[:5]]
    task = folder / 'task.jsonl'
    task.write_text(''.join(json.dumps(record) + '\n' for record in records))
    model = {
        'name': 'upcycled_mpt',
        'init_device': 'cpu',
        **tiny.moe_config(vocab_size=VOCAB),
    }
    config = {
        'max_seq_len':
        tiny.SEQ,
        'seed':
        1,
        'precision':
        'fp32',
        'device_eval_batch_size':
        5,
        'models': [
            {
                'model_name': 'moe',
                'model': model,
                'tokenizer': {
                    'name': str(folder / 'tokenizer'),
                    'kwargs': {},
                },
                **changes,
            },
        ],
        'icl_tasks': [
            {
                'label': 'words',
                'dataset_uri': str(task),
                'num_fewshot': [0],
                'icl_task_type': 'language_modeling',
            },
        ],
    }
    path = folder / 'eval.yaml'
    OmegaConf.save(OmegaConf.create(config), path)
    return str(path)


def test_a_checkpoint_is_loaded_and_evaluated(tmp_path):
    moe = tiny.build_moe(vocab_size=VOCAB)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.zero_()  # Such a model predicts token 0 everywhere.
    path = tmp_path / 'moe.pt'
    torch.save({'state': {'model': moe.state_dict()}}, path)
    (trainer, ), _ = eval_from_yaml(
        write_config(tmp_path, load_path=str(path)),
        [],
    )
    assert all(not p.any() for p in trainer.state.model.parameters())
    (metric, ) = trainer.state.eval_metrics['words/0-shot'].values()
    assert metric.total == 5 and metric.compute() == 0.0


def test_random_weights_are_not_evaluated(tmp_path):
    with pytest.raises(ConfigError, match='load_path=None: .*random weights'):
        eval_from_yaml(write_config(tmp_path), [])
