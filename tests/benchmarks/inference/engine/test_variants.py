"""Which variants can run where, and what they change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest

from benchmarks.inference.engine import variants
from benchmarks.inference.engine.machine import Machine
from benchmarks.inference.engine.server import engine_flags
from benchmarks.inference.engine.variants import (
    VARIANTS,
    changes_of,
    describe_variant,
    engine_of,
    unavailable,
)
from benchmarks.inference.errors import HarnessError

CPU = Machine(
    gpu=None,
    n_gpus=0,
    gpu_memory_gib=None,
    driver=None,
    cpu='a CPU',
    cpu_features=('avx512f', ),
    cores=2,
    memory_gib=24.0,
    vllm='0.32.0+cpu',
    torch='2.13.0+cpu',
    cuda=None,
)
AMX = replace(CPU, cpu_features=('amx_tile', ))
GPU = replace(CPU, gpu='H100', n_gpus=1, gpu_memory_gib=80.0, vllm='0.32.0')
ENGINE = {'dtype': 'bfloat16', 'enforce_eager': True, 'kv_cache_gib': 2}


@pytest.fixture(autouse=True)
def no_tuned_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv('VLLM_TUNED_CONFIG_FOLDER', raising=False)


@pytest.mark.parametrize(
    ('name', 'machine', 'load_format', 'architecture', 'reason'),
    [
        ('base', CPU, 'dummy', 'dense', None),
        ('compiled', CPU, 'dummy', 'moe', None),
        ('int8_experts', CPU, 'dummy', 'moe', 'or a CPU with amx_tile'),
        ('int8_experts', AMX, 'dummy', 'moe', None),
        ('int8_experts', GPU, 'dummy', 'moe', None),
        ('int8_experts', GPU, 'dummy', 'dense', 'has no experts'),
        ('fp8_experts', AMX, 'dummy', 'moe', None),
        ('fp8_kv_cache', CPU, 'dummy', 'dense', None),
        ('expert_parallel', CPU, 'dummy', 'moe', 'needs a GPU'),
        ('expert_parallel', GPU, 'dummy', 'moe', '2 GPUs; there are 1'),
        (
            'expert_parallel',
            replace(GPU, n_gpus=2),
            'dummy',
            'moe',
            None,
        ),
        ('tensor_parallel_2', replace(CPU, cores=3), 'dummy', 'moe', None),
        ('tensor_parallel_2', CPU, 'dummy', 'moe', '3 cores; there are 2'),
        ('base', replace(CPU, cores=1), 'dummy', 'moe', None),
        ('tuned_moe_config', CPU, 'dummy', 'moe', 'needs a GPU'),
        ('tuned_moe_config', GPU, 'dummy', 'moe', 'FOLDER names no folder'),
        ('ngram_speculation', CPU, 'dummy', 'moe', 'needs real weights'),
        ('ngram_speculation', GPU, 'real', 'dense', None),
        ('draft_speculation', GPU, 'real', 'moe', None),
        ('draft_speculation', CPU, 'real', 'dense', 'has no experts'),
        ('equal_kv_memory', CPU, 'dummy', 'moe', 'needs a GPU'),
        # A GPU that vLLM's CPU build does not use.
        (
            'expert_parallel',
            replace(GPU, n_gpus=2, vllm='0.32.0+cpu'),
            'dummy',
            'moe',
            'needs a GPU',
        ),
    ],
)
def test_unavailable(
    name: str,
    machine: Machine,
    load_format: str,
    architecture: str,
    reason: Optional[str],
):
    found = unavailable(name, machine, load_format, architecture)
    assert found is None if reason is None else reason in str(found)


def test_devices_of_the_study():
    reason = unavailable('base', GPU, 'dummy', 'moe', 4)
    assert reason == 'needs 4 GPUs; there are 1'
    four = replace(GPU, n_gpus=4)
    assert unavailable('base', four, 'dummy', 'moe', 4) is None
    reason = unavailable('tensor_parallel_2', four, 'dummy', 'moe', 4)
    assert reason == 'the study has 4 already'
    # Experts are spread otherwise, over as many.
    assert unavailable('expert_parallel', four, 'dummy', 'moe', 4) is None


def test_a_variant_for_cpus(monkeypatch: pytest.MonkeyPatch):
    variant = replace(VARIANTS['eager'], requires='cpu')
    monkeypatch.setitem(VARIANTS, 'eager', variant)
    assert unavailable('eager', GPU, 'dummy', 'moe') == 'needs a CPU'
    assert unavailable('eager', CPU, 'dummy', 'moe') is None


def test_tuned_folder_is_passed_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / 'E=8,N=256.json').touch()
    monkeypatch.setenv('VLLM_TUNED_CONFIG_FOLDER', str(tmp_path))
    assert unavailable('tuned_moe_config', GPU, 'dummy', 'moe') is None
    changes = changes_of('tuned_moe_config', ENGINE, GPU)
    assert changes.environment == {'VLLM_TUNED_CONFIG_FOLDER': str(tmp_path)}
    assert changes_of('base', ENGINE, GPU).environment == {}


def test_tuned_settings_are_described(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    assert describe_variant('tuned_moe_config')['tuned'] is None
    monkeypatch.setenv('VLLM_TUNED_CONFIG_FOLDER', str(tmp_path))
    reason = unavailable('tuned_moe_config', GPU, 'dummy', 'moe')
    assert 'FOLDER names no folder of JSON files' in str(reason)
    (tmp_path / 'b.json').write_text('{}')
    (tmp_path / 'a.json').write_text('{"1": {}}')
    (tmp_path / 'README').touch()
    before = describe_variant('tuned_moe_config')
    assert list(before['tuned']) == ['a.json', 'b.json']
    # Of `printf '{}' | sha256sum`.
    assert before['tuned']['b.json'][:16] == '44136fa355b3678a'
    (tmp_path / 'b.json').write_text('{"2": {}}')
    after = describe_variant('tuned_moe_config')
    assert after['tuned']['b.json'] != before['tuned']['b.json']
    assert after['tuned']['a.json'] == before['tuned']['a.json']
    # Others don't read them.
    assert describe_variant('base')['tuned'] is None


@pytest.mark.parametrize(
    ('name', 'changed'),
    [
        ('base', {}),
        ('compiled', {
            'enforce_eager': False
        }),
        ('eager', {
            'enforce_eager': True
        }),
        ('equal_kv_memory', {
            'kv_cache_gib': 16
        }),
        ('fp8_kv_cache', {
            'kv_cache_dtype': 'fp8'
        }),
        ('expert_parallel', {
            'tensor_parallel_size': 2
        }),
    ],
)
def test_changes_of_the_engine(name: str, changed: dict[str, Any]):
    changes = changes_of(name, ENGINE, GPU)
    assert changes.engine == {**ENGINE, 'tensor_parallel_size': 1, **changed}
    # All of it can be said to vLLM.
    assert engine_flags(changes.engine)


def test_equal_batch_limits_win_over_the_study():
    own = {**ENGINE, 'max_num_seqs': 8, 'max_num_batched_tokens': 512}
    engine = engine_of('equal_batch_limits', own)
    flags = ' '.join(engine_flags(engine))
    assert flags.count('--max-num-seqs 64') == 1
    assert flags.count('--max-num-batched-tokens 4096') == 1
    assert '512' not in flags and own['max_num_seqs'] == 8
    # No variant's flags set them once more, behind the engine's.
    keys = {'max-num-seqs', 'max-num-batched-tokens', 'tensor-parallel-size'}
    for name, variant in VARIANTS.items():
        assert not keys & {flag.lstrip('-') for flag in variant.flags}, name


def test_no_fewer_devices_than_the_study_has():
    engine = {**ENGINE, 'tensor_parallel_size': 4}
    for name in ('tensor_parallel_2', 'expert_parallel', 'base'):
        assert engine_of(name, engine)['tensor_parallel_size'] == 4
    unset = {**ENGINE, 'tensor_parallel_size': None}
    assert engine_of('base', unset)['tensor_parallel_size'] == 1
    assert engine_of('tensor_parallel_2', unset)['tensor_parallel_size'] == 2


@pytest.mark.parametrize(
    ('name', 'cores', 'bound'),
    [
        ('base', [1, 2, 3, 5, 7], '1,2,3,5'),
        ('tensor_parallel_2', [1, 2, 3, 5, 7], '1,2|3,5'),
        ('base', [1, 2, 3, 5], '1,2,3'),
        ('tensor_parallel_2', [1, 2, 3, 5], '1|2,3'),
        ('base', [4], '4'),
    ],
)
def test_all_servers_compute_on_the_same_cores(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    cores: list[int],
    bound: str,
):
    monkeypatch.setattr(variants, 'usable_cores', lambda: cores)
    environment = changes_of(name, ENGINE, CPU).environment
    assert environment == {'VLLM_CPU_OMP_THREADS_BIND': bound}
    assert changes_of(name, ENGINE, GPU).environment == {}


def test_the_dense_parent_drafts():
    flags = changes_of('draft_speculation', ENGINE, CPU, Path('dense')).flags
    assert json.loads(flags[1])['model'] == 'dense'


def test_variants_are_described_by_what_they_change():
    described = {
        name: json.dumps(describe_variant(name), sort_keys=True)
        for name in VARIANTS
    }
    # Only tuned settings that aren't there change as much as nothing.
    del described['tuned_moe_config']
    assert len(set(described.values())) == len(described)
    assert describe_variant('expert_parallel') == {
        'engine': {},
        'flags': ['--enable-expert-parallel'],
        'min_devices': 2,
        'tuned': None,
    }


@pytest.mark.parametrize('name', VARIANTS)
def test_every_variant_can_be_said_to_vllm(name: str):
    changes = changes_of(name, ENGINE, GPU, Path('dense'))
    assert engine_flags(changes.engine)[:2] == ['--dtype', 'bfloat16']
    assert not any('{dense}' in flag for flag in changes.flags)
    assert len(changes.flags) == len(VARIANTS[name].flags)


def test_unknown_variant():
    for ask in (
            describe_variant,
            lambda name: engine_of(name, {}),
            lambda name: unavailable(name, CPU, 'dummy', 'moe'),
    ):
        with pytest.raises(HarnessError, match="variants='fast': there is no"):
            ask('fast')


@pytest.mark.parametrize('name', ['ngram_speculation', 'draft_speculation'])
def test_a_cpu_speculates_greedily(name: str):
    reason = unavailable(name, CPU, 'real', 'moe')
    assert reason is not None
    assert reason.startswith('needs a GPU, or workload.greedy: ')
    assert unavailable(name, CPU, 'real', 'moe', greedy=True) is None
    assert unavailable(name, GPU, 'real', 'moe') is None
