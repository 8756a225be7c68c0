"""Named overlays of a server: what they change, and what they need.

How many experts a token gets is not among them: K is an axis of a study.

What ran on a CPU was tried with vLLM 0.32.0+cpu and a mixture of dummy weights;
what needs a GPU has not been run by us.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from benchmarks.inference.engine.machine import Machine
from benchmarks.inference.errors import HarnessError

__all__ = [
    'VARIANTS',
    'Changes',
    'Variant',
    'changes_of',
    'describe_variant',
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
        device: ``gpu``: needs one; None: runs on either.
        cpu_feature: An instruction that it needs on a CPU.
        needs_real_weights: Whether dummy weights would measure something else.
        experts_only: Whether it changes nothing of a dense model.
        tuned_folder: Whether it reads tuned settings of kernels.
    """
    about: str
    engine: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    min_devices: int = 1
    device: Optional[str] = None
    cpu_feature: Optional[str] = None
    needs_real_weights: bool = False
    experts_only: bool = False
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
        device='gpu',
        experts_only=True,
    ),
    'tuned_moe_config':
    Variant(
        'The expert kernel with settings tuned for this shape and GPU.',
        device='gpu',
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
        needs_real_weights=True,
        experts_only=True,
    ),
    # Else a mixture's larger weights leave less of a GPU's memory. On a CPU
    # the study sets the same for all.
    'equal_kv_memory':
    Variant(
        'The same memory for keys and values, 16 GiB on each device.',
        engine={'kv_cache_gib': 16},
        device='gpu',
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
        'tuned_folder': variant.tuned_folder,
    }


def unavailable(
    name: str,
    machine: Machine,
    load_format: str,
    architecture: str,
    tensor_parallel_size: int = 1,
) -> Optional[str]:
    """Why a server can't run here with a variant; None: it can.

    Args:
        name: Of a variant.
        machine: This one.
        load_format: ``dummy`` or ``real``.
        architecture: ``dense`` or ``moe``.
        tensor_parallel_size: Of the study's engine.
    """
    variant = _variant(name)
    on_gpu = machine.device == 'gpu'
    if variant.experts_only and architecture == 'dense':
        return 'a dense model has no experts'
    if variant.needs_real_weights and load_format != 'real':
        return 'needs real weights: nobody can guess what dummies answer'
    if variant.device == 'gpu' and not on_gpu:
        return 'needs a GPU'
    feature = variant.cpu_feature
    if feature and not on_gpu and feature not in machine.cpu_features:
        return f'needs a GPU, or a CPU with {feature}'
    devices = max(variant.min_devices, tensor_parallel_size)
    if on_gpu and machine.n_gpus < devices:
        return f'needs {devices} GPUs; there are {machine.n_gpus}'
    if not on_gpu and machine.cores < devices:
        return f'needs {devices} cores; there are {machine.cores}'
    if variant.tuned_folder and not os.environ.get(_TUNED_FOLDER):
        return (
            f'{_TUNED_FOLDER} is not set: tune with '
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
    changed = {**engine, **variant.engine}
    devices = max(variant.min_devices, engine.get('tensor_parallel_size') or 1)
    changed['tensor_parallel_size'] = devices
    flags = tuple(
        flag.replace(_DENSE, str(dense)) if dense else flag
        for flag in variant.flags
    )
    environment = {}
    if variant.tuned_folder and _TUNED_FOLDER in os.environ:
        environment[_TUNED_FOLDER] = os.environ[_TUNED_FOLDER]
    if devices > 1 and machine.device == 'cpu':
        cores = _split_cores(sorted(os.sched_getaffinity(0)), devices)
        environment['VLLM_CPU_OMP_THREADS_BIND'] = cores
    return Changes(changed, flags, environment)


def _split_cores(cores: Sequence[int], parts: int) -> str:
    """Cores of each rank, as ``0,1|2,3``. By itself vLLM leaves one out."""
    each = len(cores) // parts
    ranks = [cores[part * each:(part + 1) * each] for part in range(parts)]
    return '|'.join(','.join(map(str, rank)) for rank in ranks)
