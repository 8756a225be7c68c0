"""Named overlays of a server: what they change, and what they need.

How many experts a token gets is not among them: K is an axis of a study.

What ran on a CPU was tried with vLLM 0.32.0+cpu and a mixture of dummy weights;
what needs a GPU has not been run by us.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from benchmarks.inference.engine.machine import Machine, usable_cores
from benchmarks.inference.errors import HarnessError

__all__ = [
    'VARIANTS',
    'Changes',
    'Variant',
    'changes_of',
    'describe_variant',
    'engine_of',
    'unavailable',
]

# Where tuned settings of the expert kernel are, of this shape and GPU.
_TUNED_FOLDER = 'VLLM_TUNED_CONFIG_FOLDER'

# Stands in a flag for the folder of the mixture's dense parent.
_DENSE = '{dense}'

# Tokens that are proposed at a time. More pays where most are accepted.
_SPECULATIVE_TOKENS = 3


@dataclass(frozen=True)
class Variant:
    """An overlay.

    Attributes:
        about: What it is, in a sentence.
        engine: Settings in place of the study's engine section.
        flags: Of ``vllm serve``, after the engine's.
        min_devices: Over how many devices a model is spread at the least.
        requires: ``gpu`` or ``cpu``: the only device that it runs on; None:
            either.
        cpu_feature: An instruction that it needs on a CPU.
        speculates: Whether tokens are proposed, and accepted or not.
        needs_real_weights: Whether dummy weights would measure something else.
        experts_only: Whether it changes nothing of a dense model.
        quantises: Whether weights take other bytes than the engine's dtype.
        draft: Whether the dense parent is served beside the mixture.
        tuned_folder: Whether it reads tuned settings of kernels.
    """
    about: str
    engine: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    min_devices: int = 1
    requires: Optional[str] = None
    cpu_feature: Optional[str] = None
    speculates: bool = False
    needs_real_weights: bool = False
    experts_only: bool = False
    quantises: bool = False
    draft: bool = False
    tuned_folder: bool = False


@dataclass(frozen=True)
class Changes:
    """What a variant makes of a server.

    Attributes:
        engine: The study's engine section, changed.
        flags: Of ``vllm serve``, after the engine's.
        environment: To add.
    """
    engine: dict[str, Any]
    flags: tuple[str, ...]
    environment: dict[str, str]


VARIANTS: dict[str, Variant] = {
    'base':
    Variant('The engine as the study sets it.'),
    'eager':
    Variant(
        'Each operation by itself, without CUDA graphs.',
        engine={'enforce_eager': True},
    ),
    'compiled':
    Variant(
        'Compiled, on a GPU with CUDA graphs.',
        engine={'enforce_eager': False},
    ),
    # Ran on CPUs with AMX; without, vLLM has no kernel and ends.
    'int8_experts':
    Variant(
        'Experts in INT8, quantised as they are loaded.',
        flags=('--quantization', 'experts_int8'),
        cpu_feature='amx_tile',
        experts_only=True,
        quantises=True,
    ),
    # `-q fp8_per_block` would quantise attention too. Scales for each tensor
    # or channel, or `-q fp8`, don't run on a CPU.
    'fp8_experts':
    Variant(
        'Experts in FP8 with a scale for each block of 128 x 128.',
        flags=(
            '--quantization',
            'online',
            '--quantization-config',
            json.dumps({'moe': 'fp8_per_block'}),
        ),
        cpu_feature='amx_tile',
        experts_only=True,
        quantises=True,
    ),
    # Runs on a CPU.
    'fp8_kv_cache':
    Variant(
        'Keys and values in FP8.',
        engine={'kv_cache_dtype': 'fp8'},
    ),
    # Runs on a CPU.
    'tensor_parallel_2':
    Variant(
        'Each matrix over two devices.',
        min_devices=2,
    ),
    # On a CPU the engine dies of a segmentation fault at the first request.
    'expert_parallel':
    Variant(
        'Whole experts on each device, attention over all.',
        flags=('--enable-expert-parallel', ),
        min_devices=2,
        requires='gpu',
        experts_only=True,
    ),
    'tuned_moe_config':
    Variant(
        'The expert kernel with settings tuned for this shape and GPU.',
        requires='gpu',
        experts_only=True,
        tuned_folder=True,
    ),
    # Runs on a CPU.
    'ngram_speculation':
    Variant(
        'Proposes what followed the same few tokens before.',
        flags=(
            '--speculative-config',
            json.dumps({
                'method': 'ngram',
                'num_speculative_tokens': _SPECULATIVE_TOKENS,
                'prompt_lookup_min': 2,
                'prompt_lookup_max': 4,
            }),
        ),
        speculates=True,
        needs_real_weights=True,
    ),
    # Runs on a CPU.
    'draft_speculation':
    Variant(
        'The dense parent proposes what its upcycled child answers.',
        flags=(
            '--speculative-config',
            json.dumps({
                'method': 'draft_model',
                'model': _DENSE,
                'num_speculative_tokens': _SPECULATIVE_TOKENS,
            }),
        ),
        speculates=True,
        needs_real_weights=True,
        experts_only=True,
        draft=True,
    ),
    # Else a mixture's larger weights leave less of a GPU's memory. On a CPU
    # the study sets the same for all.
    'equal_kv_memory':
    Variant(
        'The same memory for keys and values, 16 GiB on each device.',
        engine={'kv_cache_gib': 16},
        requires='gpu',
    ),
    'equal_batch_limits':
    Variant(
        'At most 64 requests and 4,096 tokens in a batch.',
        engine={
            'max_num_seqs': 64,
            'max_num_batched_tokens': 4096
        },
    ),
}


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise HarnessError(
            'variants',
            name,
            'there is no such variant.',
            f'name some of {", ".join(VARIANTS)}.',
        )
    return VARIANTS[name]


def describe_variant(name: str) -> dict[str, Any]:
    """What it changes, as JSON: part of what identifies a measurement."""
    variant = _variant(name)
    return {
        'engine': dict(variant.engine),
        'flags': list(variant.flags),
        'min_devices': variant.min_devices,
        'tuned': _tuned() if variant.tuned_folder else None,
    }


def _tuned() -> Optional[dict[str, str]]:
    """SHA-256 of each file of tuned settings; None: the folder is not set."""
    folder = os.environ.get(_TUNED_FOLDER)
    if not folder:
        return None
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).glob('*.json'))
    }


def engine_of(name: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """The study's engine section as a variant changes it.

    Args:
        name: Of a variant.
        engine: The section. The variant's settings are in place of its own, but
            for ``tensor_parallel_size``, which is never made smaller.
    """
    variant = _variant(name)
    devices = max(variant.min_devices, engine.get('tensor_parallel_size') or 1)
    return {**engine, **variant.engine, 'tensor_parallel_size': devices}


def unavailable(
    name: str,
    machine: Machine,
    load_format: str,
    architecture: str,
    tensor_parallel_size: int = 1,
    greedy: bool = False,
) -> Optional[str]:
    """Why a server can't run here with a variant; None: it can.

    Args:
        name: Of a variant.
        machine: This one.
        load_format: ``dummy`` or ``real``.
        architecture: ``dense`` or ``moe``.
        tensor_parallel_size: Of the study's engine.
        greedy: Of the study's workload.
    """
    variant = _variant(name)
    on_gpu = machine.device == 'gpu'
    if variant.experts_only and architecture == 'dense':
        return 'a dense model has no experts'
    if variant.needs_real_weights and load_format != 'real':
        return 'needs real weights: nobody can guess what dummies answer'
    if variant.requires == 'gpu' and not on_gpu:
        return 'needs a GPU'
    if variant.requires == 'cpu' and on_gpu:
        return 'needs a CPU'
    if variant.speculates and not on_gpu and not greedy:
        # Measured with 0.32: 2 % accepted where a model drafts for itself, and
        # answers without sense; greedy, all are.
        return (
            'needs a GPU, or workload.greedy: the CPU build draws at random '
            'temperatures where it verifies (vLLM, pull request 42638)'
        )
    feature = variant.cpu_feature
    if feature and not on_gpu and feature not in machine.cpu_features:
        return f'needs a GPU, or a CPU with {feature}'
    if variant.min_devices > 1 and not variant.flags and \
            tensor_parallel_size >= variant.min_devices:
        return f'the study has {tensor_parallel_size} already'
    devices = max(variant.min_devices, tensor_parallel_size)
    if on_gpu and machine.n_gpus < devices:
        return f'needs {devices} GPUs; there are {machine.n_gpus}'
    if not on_gpu and devices > 1 and machine.cores <= devices:
        # One is left to the rest; see _computing_cores.
        return f'needs {devices + 1} cores; there are {machine.cores}'
    if variant.tuned_folder and not _tuned():
        return (
            f'{_TUNED_FOLDER} names no folder of JSON files: tune with '
            'benchmarks/kernels/benchmark_moe.py of vLLM\'s sources'
        )
    return None


def changes_of(
    name: str,
    engine: Mapping[str, Any],
    machine: Machine,
    dense: Optional[Path] = None,
) -> Changes:
    """The engine section, flags and environment of a server.

    Args:
        name: Of a variant.
        engine: The study's engine section.
        machine: This one.
        dense: Folder of a mixture's dense parent, where weights are real.
    """
    variant = _variant(name)
    changed = engine_of(name, engine)
    flags = tuple(
        flag.replace(_DENSE, str(dense)) if dense else flag
        for flag in variant.flags
    )
    environment = {}
    if variant.tuned_folder and _TUNED_FOLDER in os.environ:
        environment[_TUNED_FOLDER] = os.environ[_TUNED_FOLDER]
    if machine.device == 'cpu':
        parts = changed['tensor_parallel_size']
        cores = _split(_computing_cores(), parts)
        environment['VLLM_CPU_OMP_THREADS_BIND'] = cores
    return Changes(changed, flags, environment)


def _computing_cores() -> list[int]:
    """The cores of each server on a CPU: all but the last, if there are more.

    vLLM by itself leaves out a core for each rank, and one server would compute
    on fewer than another that it is compared with. The last is for the HTTP
    server, the scheduler and the load's client: threads of one matrix product
    wait for each other, and so for one whose core is busy with something else.
    On 2 cores that also did other work, both made 0.4 of one core's throughput
    with a mixture of 2 layers of 128, 1.2 (but from 0.5 to 1.5) with 12 layers
    of 512, and 0.55 with the dense model of 430M.
    """
    cores = usable_cores()
    return cores[:-1] or cores


def _split(cores: Sequence[int], parts: int) -> str:
    """All cores over ranks, as ``0,1|2,3``; the first ranks may have more."""
    bounds = [len(cores) * part // parts for part in range(parts + 1)]
    ranks = [cores[low:high] for low, high in zip(bounds, bounds[1:])]
    return '|'.join(','.join(map(str, rank)) for rank in ranks)
