"""``benchmarks/gpu`` on a CPU, at tiny size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.gpu import correctness, layer, training, worker
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.machine import require_device
from benchmarks.gpu.report import report
from benchmarks.gpu.runner import PARTS, run_part
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.experts import BACKENDS
from foundry_upcycle.planning.budget import read_training_budget

ROOT = Path(__file__).parents[3]
MACHINE = {'device': 'cpu'}


def test_every_ending_of_a_case_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}:{Path(__file__).parent}')
    kept: list[list[dict[str, Any]]] = []
    run_part('dying_part', 60, 'cpu', tmp_path, kept.append, lambda _: None)
    assert [len(records) for records in kept] == [1, 2, 3, 4, 5, 6, 7]
    found = {each['name']: each for each in kept[-1]}
    assert found['works']['value'] == 1
    assert 'this torch lacks it' in found['refuses']['left_out']
    assert found['fails']['error'] == 'ValueError: two lines'
    assert 'out of memory: Tried' in found['takes all memory']['error']
    for part in ('exit status 139', 'Segmentation fault'):
        assert part in found['dies']['error']
    assert 'illegal memory access' in found['spoils']['error']
    # In a new process.
    assert found['works after']['value'] == 2
    assert found['works after']['spoilt'] == []


def test_no_case_starts_after_the_parts_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    worker.main('dying_part', 'cpu', str(tmp_path), '-1')
    told = [
        json.loads(line.removeprefix(worker.MARK))
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(worker.MARK)
    ]
    assert told[1:] == [{
        'name': name,
        'left_out': "the part's time was up",
    } for name in told[0]['cases']]


def test_unknown_parts_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    assert main(['speed', '--device=cpu', f'--out={tmp_path}/out']) == 2
    message = capsys.readouterr().err
    assert "PART='speed'" in message and 'correctness' in message
    assert not (tmp_path / 'out').exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_machine_without_gpu_is_refused():
    with pytest.raises(ConfigError, match='finds no GPU.* --device cpu'):
        require_device('cuda')


def test_cards_without_bfloat16_are_refused(monkeypatch: pytest.MonkeyPatch):
    for name, value in (
        ('is_available', True),
        ('get_device_capability', (7, 5)),
        ('get_device_name', 'Tesla T4'),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    with pytest.raises(ConfigError, match='T4 has compute capability 7.5'):
        require_device('cuda')


def test_a_layer_is_right_or_found_out(monkeypatch: pytest.MonkeyPatch):
    right = correctness._layer('grouped', 'fp32', 'cpu')
    assert 'error' not in right
    compute = BACKENDS['grouped']
    monkeypatch.setitem(
        BACKENDS,
        'grouped',
        lambda *args: compute(*args) * 1.001,
    )
    wrong = correctness._layer('grouped', 'fp32', 'cpu')
    assert 'output 1.0e-03' in wrong['error']
    text = report({
        'machine': MACHINE,
        'parts': {
            'correctness': [{
                'name': 'layer',
                **wrong,
            }],
        },
    })
    assert '| layer | output | 1.0e-03 | 2.0e-05 | NO |' in text


def test_the_layers_table_has_every_implementation(tmp_path: Path):
    ((name, case), ) = layer.cases('cpu', tmp_path).items()
    record = {'name': name, **case()}
    for samples in record['passes'].values():
        assert {f'upcycled_dmoe {each}'
                for each in BACKENDS} <= (
                    samples.keys() | record['missing'].keys()
                )
        for sample in samples.values():
            assert len(sample['seconds']) == 2 and min(sample['seconds']) > 0
        # 6 T K D F.
        assert samples['dense GLU']['of_dense'] == (1, 1, 1)
    assert record['passes']['forward']['dense GLU']['flops'] == (
        6 * 64 * 2 * 32 * 64
    )
    text = report({'machine': MACHINE, 'parts': {'layer': [record]}})
    for implementation in ('dense GLU', *record['missing']):
        assert implementation in text


@pytest.mark.parametrize(
    'yaml,ffn_type',
    [('pretrain_430m', None), ('upcycle_1b', None),
     ('upcycle_430m', 'mb_dmoe')],
)
def test_a_training_keeps_the_yamls_model(
    tmp_path: Path,
    yaml: str,
    ffn_type: str | None,
):
    config = training._config(yaml, ffn_type, 'cuda', tmp_path)
    OmegaConf.save(config, tmp_path / 'case.yaml')
    found = read_training_budget(str(tmp_path / 'case.yaml'))
    of_yaml = read_training_budget(str(ROOT / 'yamls' / f'{yaml}.yaml'))
    for name in ('n_total_params', 'training_flops_per_token'):
        assert getattr(found, name) == getattr(of_yaml, name)
    assert (found.tokens_per_step, found.n_steps) == (16 * 4096, 1)
    assert config.precision == 'amp_bf16'
    # One step by `train`, three at each of five sizes, and one profiled: no
    # epoch ends among those that are timed.
    index = (tmp_path / 'tokens' / 'train' / 'index.json').read_text()
    shards = json.loads(index)['shards']
    assert sum(shard['samples'] for shard in shards) >= (1 + 3 * 5 + 1) * 16


def test_a_gpu_does_not_train_on_a_cpus_tokens(tmp_path: Path):
    of_cpu, of_cuda = (
        training.cases(device, tmp_path)['pretrain_430m'].args[-1]
        for device in ('cpu', 'cuda')
    )
    assert of_cpu != of_cuda


def test_what_cannot_fit_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        torch.cuda,
        'get_device_properties',
        lambda index: SimpleNamespace(total_memory=80 * 2**30),
    )
    fits, does_not = (
        read_training_budget(str(ROOT / 'yamls' / f'{name}.yaml'))
        for name in ('upcycle_430m', 'upcycle_1b')
    )
    training._require_memory(fits, 'cuda')
    # 6.70B parameters of 14 bytes.
    with pytest.raises(ConfigError, match='takes 87 GiB; this GPU has 80'):
        training._require_memory(does_not, 'cuda')


@pytest.mark.parametrize(
    'speeds,too_large,expected',
    [
        ({
            1: 1,
            2: 2,
            4: 3
        }, 8, [(1, 100), (2, 200), (4, 300), (8, None)]),
        ({
            1: 2,
            2: 1,
            4: 3
        }, 8, [(1, 200), (2, 100)]),
        ({
            1: 1,
            2: 2,
            4: 3,
            8: 4,
            16: 5
        }, 32, [(16, 500)]),
    ],
)
def test_microbatches_grow_until_slower_or_too_large(
    monkeypatch: pytest.MonkeyPatch,
    speeds: dict[int, float],
    too_large: int,
    expected: list[tuple[int, Any]],
):
    state = SimpleNamespace(callbacks=[], device_train_microbatch_size=0)

    def fit(trainer: Any, steps: int, device: str) -> int:
        size = state.device_train_microbatch_size
        if size == too_large:
            raise torch.OutOfMemoryError('CUDA out of memory.')
        ends = [index / speeds[size] for index in range(steps)]
        state.callbacks[-1].ends.extend(ends)
        return size

    monkeypatch.setattr(training, '_fit', fit)
    trainer: Any = SimpleNamespace(state=state)
    budget: Any = SimpleNamespace(tokens_per_step=100)
    found = [(each['microbatch'], each.get('tokens_per_s'))
             for each in training._by_microbatch(trainer, budget, 'cuda')]
    assert found[-len(expected):] == expected
    assert not state.callbacks


def test_targets_are_told():

    def record(name: str, speeds: list[float], flops: float) -> dict[str, Any]:
        sizes = [{
            'microbatch': 2**index,
            'tokens_per_s': speed,
            'peak_bytes': 2**30,
        } for index, speed in enumerate(speeds)]
        sizes.append({'microbatch': 99, 'error': 'out of memory'})
        return {
            'name': name,
            'sizes': sizes,
            'flops_per_token': flops,
            'peak_flops': 1e12,
            'operations': [],
        }

    records = [
        record('pretrain_430m', [100.0, 200.0], 1e9),
        record('upcycle_430m', [90.0, 80.0], 2e9),
    ]
    text = report({'machine': MACHINE, 'parts': {'training': records}})
    # 90 * 2 of 200.
    assert "0.8 of the dense model's MFU: 0.90, met" in text
    assert "1.0 of MegaBlocks' speed: not measured" in text
    assert '| pretrain_430m | 2 (best) | 200 | 0.2 | 0.200 | 1.0 |' in text
    assert '| upcycle_430m | 99 | out of memory |' in text
    records[1] = record('upcycle_430m', [79.0], 2e9)
    text = report({'machine': MACHINE, 'parts': {'training': records}})
    assert '0.79, NOT met' in text


@pytest.mark.slow
def test_whole_pack(tmp_path: Path):
    done = subprocess.run(
        [ROOT / 'benchmarks/gpu/run.sh', '--device=cpu', f'--out={tmp_path}'],
        env={
            **os.environ, 'PYTHON': sys.executable
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'results.json').read_text())
    assert [*results['parts']] == [*PARTS]
    assert all(results['parts'].values())
    assert done.stdout.strip() == (tmp_path / 'report.md').read_text().strip()
