"""The callback ``cpu_training``: the same training, faster on a CPU."""

import ctypes
from typing import Any, Optional

from composer import Callback, Logger, State
from llmfoundry.models.layers.attention import (
    scaled_multihead_dot_product_attention,
)
from llmfoundry.models.mpt.modeling_mpt import ComposerMPTCausalLM

from foundry_upcycle.callbacks.loss_metrics import LastLoss, of_last_loss
from foundry_upcycle.models.attention import fused_attention

__all__ = ['CPUTraining', 'keep_freed_memory']

# glibc's malloc.h, and how many blocks it lets the system map by default.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MMAP_MAX, _LARGEST = 65536, 2**31 - 1


class CPUTraining(Callback):
    """Trains an MPT, dense or upcycled, faster on a CPU.

    What is computed stays the same, to rounding; docs/performance.md has what
    it brings. On other devices nothing changes, so a YAML can go there.

    - Attention of ``attn_impl: torch`` is computed by torch's fused kernel
      (``fused_attention``). The model's settings stay as they are, and so do
      its checkpoints and exports.
    - ``metrics/train/LanguageCrossEntropy`` and ``LanguagePerplexity`` are of
      the loss that is minimised, which otherwise both compute again.
    - Freed memory stays with the process, where glibc is the allocator. It
      would give large blocks back to the system, which clears them page by
      page for the next step; the process holds up to half as much again.
    """

    def __init__(self) -> None:
        self._is_active = False
        self._loss: Optional[LastLoss] = None

    def init(self, state: State, logger: Logger) -> None:
        del logger
        self._is_active = state.device.name == 'cpu'
        if not self._is_active:
            return
        keep_freed_memory(True)
        module: Any
        for module in state.model.modules():
            found = getattr(module, 'attn_fn', None)
            if found is scaled_multihead_dot_product_attention:
                module.attn_fn = fused_attention

    def fit_start(self, state: State, logger: Logger) -> None:
        del logger
        # Of other models it isn't known that the loss is the cross entropy.
        is_mpt = any(
            isinstance(module, ComposerMPTCausalLM)
            for module in state.model.modules()
        )
        if self._is_active and is_mpt and state.train_metrics is not None:
            self._loss = LastLoss()
            for name, metric in state.train_metrics.items():
                state.train_metrics[name] = of_last_loss(metric, self._loss)

    def after_loss(self, state: State, logger: Logger) -> None:
        del logger
        if self._loss is not None:
            self._loss.keep(state.loss)

    def close(self, state: State, logger: Logger) -> None:
        del state, logger
        if self._is_active:
            keep_freed_memory(False)


def keep_freed_memory(keep: bool) -> None:
    """Sets whether malloc keeps what is freed, of any size; if not, frees it."""
    libc: Any = ctypes.CDLL(None)
    if not hasattr(libc, 'mallopt'):
        return  # Not glibc.
    libc.mallopt(_M_MMAP_MAX, 0 if keep else _MMAP_MAX)
    libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST if keep else 128 << 10)
    if not keep:
        libc.malloc_trim(0)
