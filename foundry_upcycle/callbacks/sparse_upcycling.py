"""The callback ``sparse_upcycling``: a run starts from a dense checkpoint."""

import resource
import time
import warnings
from contextlib import contextmanager
from typing import Any, Iterable, Iterator, Mapping, Optional

import torch
from composer import Callback, Logger, State
from composer.callbacks import LoadCheckpoint
from composer.utils import dist
from llmfoundry.models.mpt import MPTConfig
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
from tqdm import tqdm

from foundry_upcycle.checkpoints.base import Checkpoint
from foundry_upcycle.checkpoints.exactness import check_same_function
from foundry_upcycle.checkpoints.names import clean_name
from foundry_upcycle.checkpoints.open import open_checkpoint
from foundry_upcycle.checkpoints.remote import local_checkpoint
from foundry_upcycle.checkpoints.sync import raise_together
from foundry_upcycle.checkpoints.upcycled import UpcycledCheckpoint
from foundry_upcycle.checkpoints.writers.parameters import fill_parameters
from foundry_upcycle.config import UpcyclingConfig
from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.models.upcycled_mpt import ComposerUpcycledMPT
from foundry_upcycle.planning.top_k import read_top_k
from foundry_upcycle.recipes import get_recipe

__all__ = ['SparseUpcycling']


class SparseUpcycling(Callback):
    """Fills the model from a dense checkpoint, once, while the run starts.

    It acts when Composer has wrapped the model and looked for a checkpoint to
    resume (``Event.AFTER_LOAD``): parameters are final, the optimizer state
    is empty and stays so. On any number of ranks each fills only what it
    holds. A run that resumes loads its own checkpoint, in which this callback
    has recorded that the conversion is done.

    Args:
        source_path: See ``UpcyclingConfig``, as the others.
        recipe: Default ``{name: copy}``.
        router_init_std: Default 0.02.
        seed: Default 17.

    Raises:
        ConfigError: A setting can't be used, or ``load_path`` or the callback
            ``load_checkpoint`` is set as well.
        CheckpointError: The source is missing, damaged, or does not fit the
            model. Nothing has been trained or saved then.
    """

    def __init__(
        self,
        source_path: str,
        recipe: Optional[Mapping[str, Any]] = None,
        router_init_std: float = 0.02,
        seed: int = 17,
    ):
        self.config = UpcyclingConfig(
            source_path=source_path,
            recipe={'name': 'copy'} if recipe is None else recipe,
            router_init_std=router_init_std,
            seed=seed,
        )
        get_recipe(self.config.recipe)  # Fails here, not at the first step.
        self.done = False

    def state_dict(self) -> dict[str, Any]:
        return {'source_path': self.config.source_path, 'done': self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state['done']
        if self.done and state['source_path'] != self.config.source_path:
            with _warnings_of_rank_0():
                _warn_of_other_source(
                    self.config.source_path,
                    state['source_path'],
                )

    def init(self, state: State, logger: Logger) -> None:
        del logger
        for callback in state.callbacks:
            if isinstance(callback, LoadCheckpoint):
                raise ConfigError(
                    'callbacks.load_checkpoint.load_path',
                    callback.load_path,
                    'sparse_upcycling fills the whole model from source_path, '
                    'and one of the two would overwrite the other.',
                    'remove load_checkpoint to upcycle source_path, or remove '
                    'sparse_upcycling to go on from that checkpoint.',
                )

    def after_load(self, state: State, logger: Logger) -> None:
        del logger
        config = _model_config(state)
        if self.done:
            _print(f'resumed from {state.load_path}, upcycled already')
            return
        _check_run(state)
        with _warnings_of_rank_0():
            _warn_if_inexact(config.ffn_config)
        started = time.monotonic()
        with local_checkpoint(self.config.source_path) as path:
            with raise_together():
                with _warnings_of_rank_0():
                    dense = open_checkpoint(path)
                    check_same_function(dense, config.to_dict())
                parameters = {
                    clean_name(name): parameter
                    for name, parameter in state.model.named_parameters()
                }
                shapes = {n: tuple(p.shape) for n, p in parameters.items()}
                upcycled = UpcycledCheckpoint(dense, shapes, self.config)
                fill_parameters(upcycled, parameters, _progress(shapes))
                dense.files.check()
                with _warnings_of_rank_0():
                    dense.narrowing.warn_of_zeros()
        if isinstance(state.model, ComposerUpcycledMPT):
            state.model.mark_weights_loaded()
        self.done = True
        self._print_summary(dense, shapes, time.monotonic() - started)

    def _print_summary(
        self,
        dense: Checkpoint,
        shapes: Mapping[str, tuple[int, ...]],
        seconds: float,
    ) -> None:
        n_dense = sum(
            torch.Size(i.shape).numel() for i in dense.tensors.values()
        )
        n_moe = sum(torch.Size(shape).numel() for shape in shapes.values())
        peaks = dist.all_gather_object(_peak_memory_bytes())
        _print(
            f'{self.config.source_path} ({self.config.recipe["name"]}): '
            f'{n_dense / 1e6:,.1f}M -> {n_moe / 1e6:,.1f}M parameters in '
            f'{seconds:.1f} s, peak memory {max(peaks) / 2**30:.1f} GiB a rank',
        )


def _progress(names: Iterable[str]) -> Iterable[str]:
    return tqdm(
        names,
        desc='sparse_upcycling',
        unit='tensor',
        delay=2,
        disable=dist.get_global_rank() != 0,
    )


@contextmanager
def _warnings_of_rank_0() -> Iterator[None]:
    """Lets one rank warn of what all of them see."""
    with warnings.catch_warnings():
        if dist.get_global_rank() != 0:
            warnings.simplefilter('ignore', UpcyclingWarning)
        yield


def _print(message: str) -> None:
    # Not a log message: Foundry shows those of its own modules only.
    if dist.get_global_rank() == 0:
        print(f'sparse_upcycling: {message}', flush=True)


def _model_config(state: State) -> MPTConfig:
    config = getattr(state.model, 'config', None)
    if not isinstance(config, MPTConfig):
        raise ConfigError(
            'model.name',
            type(state.model).__name__,
            'sparse_upcycling fills MPT models.',
            'set it to upcycled_mpt.',
        )
    return config


def _check_run(state: State) -> None:
    if state.load_path is not None:
        raise ConfigError(
            'load_path',
            state.load_path,
            'it was loaded, and nothing in it says that sparse_upcycling has '
            'run (a checkpoint saved with save_weights_only, or loaded with '
            'load_weights_only, does not); upcycling would overwrite it.',
            'remove load_path (with autoresume, name another save_folder) to '
            'upcycle source_path, or remove sparse_upcycling to go on from '
            'load_path.',
        )
    if any(isinstance(module, FSDP1) for module in state.model.modules()):
        raise ConfigError(
            'FSDP_VERSION',
            1,
            'sparse_upcycling fills the parameters of FSDP2 in place; those '
            'of FSDP1 are flattened together.',
            'set FSDP_VERSION=2 in the environment (train.py of '
            'foundry_upcycle does).',
        )


def _warn_of_other_source(source_path: str, upcycled: str) -> None:
    warnings.warn(
        f'callbacks.sparse_upcycling.source_path={source_path!r}: it is not '
        f'read, as the run goes on from a checkpoint that was upcycled from '
        f'{upcycled!r}. Fix: to upcycle it, remove load_path, or name another '
        'save_folder.',
        UpcyclingWarning,
        stacklevel=3,
    )


def _warn_if_inexact(ffn_config: Mapping[str, Any]) -> None:
    default = None if ffn_config['ffn_type'] == 'mb_dmoe' else 1
    value = ffn_config.get('moe_normalize_expert_weights', default)
    if value != 1:
        warnings.warn(
            f'model.ffn_config.moe_normalize_expert_weights={value!r}: the '
            'combine weights of a token do not sum to 1, so training does not '
            'start from the function of the dense model. Fix: set it to 1, '
            'unless this is meant.',
            UpcyclingWarning,
            stacklevel=2,
        )
    elif _top_k(ffn_config) == 1:
        warnings.warn(
            'model.ffn_config.moe_top_k=1: the one combine weight of a token '
            'is always 1, as training must start from the function of the '
            'dense model. So the loss on tokens does not reach the routers: '
            'only moe_loss_weight and moe_zloss_weight train them.',
            UpcyclingWarning,
            stacklevel=2,
        )


def _top_k(ffn_config: Mapping[str, Any]) -> Any:
    value = ffn_config.get('moe_top_k')
    if isinstance(value, Mapping):
        return read_top_k(value, ffn_config.get('moe_num_experts', 8)).largest
    return value


def _peak_memory_bytes() -> int:
    """High-water mark of this process: on the GPU if it uses one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
