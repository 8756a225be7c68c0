"""``benchmarks/conversion`` on a tiny model, with what it takes to read it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.conversion.convert import convert

FOLDER = Path(__file__).parents[2] / 'benchmarks/conversion'


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        capture_output=True,
        text=True,
    )


def differences(folder: Path) -> list[str]:
    module = runpy.run_path(str(FOLDER / 'same_outputs.py'))
    return module['differences'](folder / 'ours', folder / 'theirs')


def save(content: dict[str, torch.Tensor], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    save_file(content, folder / 'model.safetensors')


@pytest.fixture(scope='module')
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('conversion')
    (folder / 'tiny').mkdir()
    # Here, where all is imported, and not in a process of its own.
    sources = runpy.run_path(str(FOLDER / 'sources.py'))
    sources['make_sources']('tiny', folder / 'tiny', ['bfloat16'])
    done = run(
        'convert.py',
        '--sizes=tiny',
        '--dtypes=bfloat16',
        '--jobs=llama',
        '--rounds=1',
        f'--folder={folder}',
        f'--out={folder}',
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_sample(measured: Path):
    content = json.loads((measured / 'results.json').read_text())
    (sample, ) = content['samples']
    # 8 experts of 3 x 64 x 128 in bfloat16.
    assert sample['group_bytes'] == 8 * 3 * 64 * 128 * 2
    # Both layers' experts, and little else: embeddings of 256 tokens.
    assert 2 * sample['group_bytes'] < sample['output_bytes'] < 1.3e6
    assert sample['cp_seconds'] > 0
    assert 0 < sample['seconds'] < sample['process_seconds']
    assert 0 < sample['imports_mib'] < sample['peak_mib']


def test_load_everything_writes_the_same(
    measured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    source = str(measured / 'tiny/llama-bfloat16')
    convert(
        UpcyclingConfig(source),
        str(tmp_path / 'ours'),
        'safetensors',
    )
    monkeypatch.syspath_prepend(str(FOLDER))
    module = runpy.run_path(str(FOLDER / 'load_everything.py'))
    try:
        module['load_everything'](source, tmp_path / 'theirs', torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert differences(tmp_path) == []


def test_report(measured: Path):
    text = (measured / 'results.md').read_text()
    assert '| tiny | bfloat16 | foundry-upcycle |' in text
    assert (measured / 'memory.png').stat().st_size > 10_000
    assert (measured / 'memory.svg').is_file()


def test_outputs_are_removed(measured: Path):
    names = {path.name for path in (measured / 'tiny').iterdir()}
    assert names == {'dense.pt', 'llama-bfloat16'}


def test_different_experts_are_found(tmp_path: Path):
    name = 'model.layers.0.block_sparse_moe.experts.1.w1.weight'
    save({name: torch.zeros(2, 2)}, tmp_path / 'ours')
    save({name: torch.ones(2, 2)}, tmp_path / 'theirs')
    assert differences(tmp_path) == [f'differs: {name}']
    save({'lm_head.weight': torch.ones(2, 2)}, tmp_path / 'theirs')
    assert differences(tmp_path) == [
        'only in one: lm_head.weight',
        f'only in one: {name}',
    ]


def test_stacked_experts_are_compared(tmp_path: Path):
    gate_up_EFD = torch.arange(2 * 6 * 4.).reshape(2, 6, 4)
    down_EDF = torch.arange(2 * 4 * 3.).reshape(2, 4, 3)
    mlp, moe = 'model.layers.0.mlp', 'model.layers.0.block_sparse_moe'
    stacked = {
        f'{mlp}.experts.gate_up_proj': gate_up_EFD,
        f'{mlp}.experts.down_proj': down_EDF,
        f'{mlp}.gate.weight': torch.zeros(2, 4),  # Random in both.
    }
    single = {f'{moe}.gate.weight': torch.ones(2, 4)}
    for expert in range(2):
        weights = {
            'w1': gate_up_EFD[expert, :3],
            'w2': down_EDF[expert],
            'w3': gate_up_EFD[expert, 3:],
        }
        for name, weight in weights.items():
            single[f'{moe}.experts.{expert}.{name}.weight'] = weight.clone()
    save(single, tmp_path / 'ours')
    save(stacked, tmp_path / 'theirs')
    assert differences(tmp_path) == []
    gate_up_EFD[1, 5] += 1
    save(stacked, tmp_path / 'theirs')
    assert differences(tmp_path) == [f'differs: {moe}.experts.1.w3.weight']


def test_export_needs_the_mixture():
    done = run('convert.py', '--jobs', 'export-hf')
    assert done.returncode == 2
    assert '--jobs export-hf exports what the job pt writes.' in done.stderr
