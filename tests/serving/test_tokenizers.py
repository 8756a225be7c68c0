"""Tokenizers between transformers 5 and the one that trains."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tiny_hf

from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.export_hf import export_hf
from foundry_upcycle.conversion.import_hf import import_hf

PROJECT = Path(__file__).parents[2]
PYTHON = PROJECT / '.venv-vllm' / 'bin' / 'python'


def run_worker(*arguments: Any) -> str:
    return subprocess.run(
        [PYTHON, PROJECT / 'tests/serving/tokenizer_worker.py', *arguments],
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
        env={
            **os.environ, 'PYTHONPATH': ''
        },
    ).stdout


def contents(folder: Path) -> dict[str, Any]:
    return {
        str(file.relative_to(folder)):
        json.loads(file.read_text())
        if file.suffix == '.json' else file.read_text()
        for file in folder.rglob('*')
        if file.is_file()
    }


@pytest.mark.vllm
def test_what_transformers_5_saves_comes_back_to_it(tmp_path):
    source, out = tmp_path / 'llama', tmp_path / 'out'
    tiny_hf.save_llama(source)
    run_worker('save', source, tmp_path / 'saved')
    (tmp_path / 'ours').mkdir()
    tiny_hf.save_tokenizer_5(tmp_path / 'ours')
    # So the fast tests see what it really saves.
    found, ours = contents(tmp_path / 'saved'), contents(tmp_path / 'ours')
    assert found.keys() == ours.keys()
    config = found['tokenizer_config.json']
    assert config.items() >= ours['tokenizer_config.json'].items()
    tiny_hf.save_tokenizer_5(source)
    import_hf(str(source), str(tmp_path / 'mpt'))
    moe = str(tmp_path / 'moe.pt')
    convert(UpcyclingConfig(f'{tmp_path}/mpt/checkpoint.pt'), moe, 'pt')
    export_hf(moe, str(out))
    loaded = json.loads(run_worker('load', out))
    assert loaded.pop('version').startswith('5.')
    assert loaded == {
        'text': [3, 127],
        'special': [0, 1, 2, 127],
        'eos': [2, 2],
        'templates': {
            'default': 'chat {{ messages }}\n',
            'rag': 'rag {{ messages }}',
        },
    }
