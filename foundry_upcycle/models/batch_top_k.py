"""The K of each training batch, where ``moe_top_k`` varies.

Composer gives a model its logger, which knows the trainer's state: the batch's
number, the seed and how much of the run is done, which its checkpoints keep.
"""

from typing import Any, Mapping, Optional, Sequence

import torch
from composer import State
from composer.core import TimeUnit

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.ffn import UpcycledDMoE

__all__ = ['more_flops', 'set_batch_top_k']


# torch.compile would trace it, and compile anew for each batch's number.
@torch.compiler.disable
def set_batch_top_k(model: Any, inputs: Any) -> None:
    """Before a model's forward: sets the batch's K in all layers.

    All microbatches of a batch, and all ranks, have the same. It stays for
    backward, where checkpointed blocks run once more.

    Args:
        model: A ``ComposerUpcycledMPT``. In no trainer nothing is set, and its
            routers refuse to train.
        inputs: Of its forward.

    Raises:
        ConfigError: The run's length, of which a schedule is, is not known.
    """
    del inputs
    state: Optional[State] = getattr(model.logger, '_state', None)
    if state is None or not model.training:
        return
    top_k = model.moe_layers[0].top_k
    if top_k.is_drawn:
        K = top_k.drawn(state.timestamp.batch.value, state.rank_zero_seed)
    else:
        K = top_k.scheduled(_share_done(state))
    for layer in model.moe_layers:
        layer.router.training_top_k = K


def more_flops(
    layers: Sequence[UpcycledDMoE],
    batch: Mapping[str, torch.Tensor],
) -> int:
    """Training FLOPs of a batch beyond those of the mean K.

    Args:
        layers: The mixtures of a model.
        batch: Of the K that was set last.
    """
    if not (layers and layers[0].top_k.varies):
        return 0
    mean = layers[0].top_k.mean
    K = layers[0].router.training_top_k or mean
    n_of_one = sum(
        parameter.numel() // layer.router.moe_num_experts
        for layer in layers
        for parameter in layer.experts.parameters()
    )
    return round(6 * n_of_one * (K - mean) * batch['input_ids'].numel())


def _share_done(state: State) -> float:
    """Of the run, before a batch; in epochs, too, by its batches."""
    if state.max_duration is None:
        raise _unknown_length(None)
    if state.max_duration.unit != TimeUnit.EPOCH:
        done: Any = state.get_elapsed_duration()
        return done.value
    if state.dataloader_len is None:
        raise _unknown_length(f'{state.max_duration.value}ep')
    n_batches = state.max_duration.value * state.dataloader_len.value
    return state.timestamp.batch.value / n_batches


def _unknown_length(max_duration: Optional[str]) -> ConfigError:
    return ConfigError(
        'max_duration',
        max_duration,
        'moe_top_k is a schedule in shares of the run, whose length is not '
        'known.',
        'write it in batches or tokens.',
    )
