"""Part 3: speed and memory of the paper's runs, through Foundry's trainer.

Each case is a YAML of ``yamls/`` with what a machine without data and network
needs changed, in a process of its own.
"""

import gc
import importlib.util
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from composer import Callback, Logger, State, Trainer
from composer.callbacks.speed_monitor import get_gpu_flops_available
from composer.trainer.trainer import _clear_incomplete_train_states
from llmfoundry.command_utils import train
from llmfoundry.registry import attention_implementations
from omegaconf import DictConfig, OmegaConf
from streaming import MDSWriter

from benchmarks.gpu.worker import is_out_of_memory
from foundry_upcycle.data.tokenizer import train_tokenizer
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.attention import fused_attention
from foundry_upcycle.planning.budget import TrainingBudget, read_training_budget

__all__ = ['ONE_A_PROCESS', 'cases']

ONE_A_PROCESS = True

_YAMLS = Path(__file__).parents[2] / 'yamls'
# Sequences of an optimizer step: its time is that of many microbatches, as in
# the paper's runs, where a rank has 128 of 8 ranks.
_SEQUENCES = 16
_MICROBATCHES = (1, 2, 4, 8, 16)
# Measured at each microbatch size, after one that allocates.
_STEPS = 2
# Those, the one of `train`, and that of the profile. They are one epoch: where
# one ends the loader starts anew, and a step would seem to take that long.
_EPOCH_STEPS = 1 + len(_MICROBATCHES) * (1 + _STEPS) + 1
_TOP_OPERATIONS = 15
# Weights, gradients and Lion's momentum in float32, and the weights in bfloat16,
# which autocast keeps until the backward pass has used them.
_BYTES_A_PARAMETER = 3 * 4 + 2
# A model whose sizes show nothing but that it runs.
_TINY = {
    'max_seq_len': 64,
    'precision': 'fp32',
    'model': {
        'd_model': 64,
        'n_layers': 2,
        'n_heads': 4,
        'vocab_size': 512,
        'ffn_config': {
            'ffn_hidden_size': 96
        },
    },
    'train_loader': {
        'num_workers': 1
    },
}


def cases(device: str, folder: Path) -> dict[str, Any]:
    """See ``worker.Case``: the most important first."""
    names = {
        'pretrain_430m': None,
        'upcycle_430m': None,
        'upcycle_430m, MegaBlocks': 'mb_dmoe',
        'upcycle_1b': None,
        'pretrain_1b': None,
    }
    return {
        name:
        partial(_case,
                name.split(',')[0], ffn_type, device, folder / device)
        for name, ffn_type in names.items()
    }


def _case(
    yaml: str,
    ffn_type: Optional[str],
    device: str,
    folder: Path,
) -> dict[str, Any]:
    if ffn_type and importlib.util.find_spec('megablocks') is None:
        raise ConfigError(
            'ffn_type',
            ffn_type,
            'MegaBlocks is not installed.',
            "pip install '.[megablocks]'.",
        )
    if _lacks_flash_attention(device):
        # What every torch has; this process is of this case alone.
        attention_implementations.register('torch', func=fused_attention)
    config = _config(yaml, ffn_type, device, folder)
    path = folder / f'{yaml}.yaml'
    OmegaConf.save(config, path)
    budget = read_training_budget(str(path))
    _require_memory(budget, device)
    trainer = train(config)
    sizes = _by_microbatch(trainer, budget, device)
    record = {
        'sizes': sizes,
        'flops_per_token': budget.training_flops_per_token,
        'peak_flops': get_gpu_flops_available(trainer.state) or None,
    }
    measured = [each for each in sizes if 'tokens_per_s' in each]
    best = max(measured, key=lambda each: each['tokens_per_s'])
    trainer.state.device_train_microbatch_size = best['microbatch']
    return {**record, 'operations': _operations(trainer, device)}


def _lacks_flash_attention(device: str) -> bool:
    return device == 'cpu' or importlib.util.find_spec('flash_attn') is None


def _config(
    yaml: str,
    ffn_type: Optional[str],
    device: str,
    folder: Path,
) -> DictConfig:
    """The YAML on random tokens, for a step of one sequence at a time."""
    config: Any = OmegaConf.load(_YAMLS / f'{yaml}.yaml')
    if device == 'cpu':
        config.merge_with(_TINY)
    if ffn_type:
        config.model.ffn_config.merge_with({
            'ffn_type': ffn_type,
            'mlp_type': 'glu',
            'moe_world_size': 1,
        })
    if _lacks_flash_attention(device):
        config.model.attn_config.attn_impl = 'torch'
        config.model.loss_fn = 'torch_crossentropy'
    _write_data(folder, config.max_seq_len, config.model.vocab_size)
    config.tokenizer = {
        'name': str(folder / 'tokenizer'),
        'kwargs': {
            'model_max_length': config.max_seq_len
        },
    }
    config.train_loader.dataset.streams = {
        'random': {
            'local': str(folder / 'tokens'),
            'split': 'train'
        },
    }
    # From random weights: a checkpoint would change neither shapes nor speed.
    config.callbacks.pop('sparse_upcycling', None)
    for key in ('save_folder', 'save_interval', 'save_num_checkpoints_to_keep'):
        config.pop(key)
    config.merge_with({
        'autoresume': False,
        'progress_bar': False,
        'python_log_level': 'error',
        'max_duration': '1ba',
        'global_train_batch_size': _SEQUENCES,
        'device_train_microbatch_size': 1,
        'scheduler': {
            't_warmup': '0ba'
        },
    })
    return config


def _write_data(folder: Path, seq_len: int, vocab_size: int) -> None:
    """A tokenizer, which nobody asks, and random sequences."""
    if (folder / 'tokens' / 'train').exists():
        return
    letters = [chr(97 + i) + chr(97 + j) for i in range(26) for j in range(26)]
    train_tokenizer([' '.join(letters)], 300, folder / 'tokenizer')
    random = np.random.default_rng(0)
    with MDSWriter(
            out=str(folder / 'tokens' / 'train'),
            columns={'tokens': 'ndarray:int32'},
    ) as writer:
        for _ in range(_EPOCH_STEPS * _SEQUENCES):
            tokens = random.integers(vocab_size, size=seq_len, dtype=np.int32)
            writer.write({'tokens': tokens})


def _require_memory(budget: TrainingBudget, device: str) -> None:
    """Refuses what cannot fit, before minutes of making its weights."""
    if device == 'cpu':
        return
    needed = _BYTES_A_PARAMETER * budget.n_total_params
    there = torch.cuda.get_device_properties(0).total_memory
    if needed > there:
        raise ConfigError(
            'model',
            f'{budget.n_total_params / 1e9:.2f}B parameters',
            f'without activations it takes {needed / 2**30:.0f} GiB; this GPU '
            f'has {there / 2**30:.0f}.',
            'train it on more than one.',
        )


class _StepTimer(Callback):
    """When each step ended; a step's time includes its data."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        del state, logger
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def _by_microbatch(
    trainer: Trainer,
    budget: TrainingBudget,
    device: str,
) -> list[dict[str, Any]]:
    """Microbatches twice as large each, until one is slower or too large."""
    timer = _StepTimer()
    trainer.state.callbacks.append(timer)
    found: list[dict[str, Any]] = []
    for size in _MICROBATCHES:
        trainer.state.device_train_microbatch_size = size
        timer.ends.clear()
        try:
            peak_bytes = _fit(trainer, 1 + _STEPS, device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            found.append({'microbatch': size, 'error': 'out of memory'})
            break
        steps = [b - a for a, b in zip(timer.ends, timer.ends[1:])]
        speed = budget.tokens_per_step / statistics.median(steps)
        found.append({
            'microbatch': size,
            'tokens_per_s': speed,
            'peak_bytes': peak_bytes,
        })
        if speed < max(each['tokens_per_s'] for each in found):
            break
    trainer.state.callbacks.remove(timer)
    return found


def _fit(trainer: Trainer, steps: int, device: str) -> Optional[int]:
    """Trains on; returns the most bytes that were allocated meanwhile."""
    gc.collect()
    if device == 'cpu':
        trainer.fit(duration=f'{steps}ba')
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer.fit(duration=f'{steps}ba')
    return torch.cuda.max_memory_allocated()


def _operations(trainer: Trainer, device: str) -> list[dict[str, Any]]:
    """Where the time of a step goes, the most expensive operations first."""
    # A step that ran out of memory left its outputs and gradients there.
    _clear_incomplete_train_states(trainer.state)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        trainer.fit(duration='1ba')
    # Kernels count where they are started from, and once.
    events = [
        event for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CPU
    ]
    of_event = f"self_{'device' if device == 'cuda' else 'cpu'}_time_total"
    events.sort(key=lambda event: getattr(event, of_event), reverse=True)
    total = sum(getattr(event, of_event) for event in events)
    return [{
        'name': event.key,
        'calls': event.count,
        'seconds': getattr(event, of_event) / 1e6,
        'share': getattr(event, of_event) / total,
    } for event in events[:_TOP_OPERATIONS]]
