"""Training metrics of the loss that was computed, not of the logits again."""

from typing import Any, Mapping, Optional

import torch
from composer.metrics import LanguageCrossEntropy, LanguagePerplexity
from torchmetrics import Metric

__all__ = ['LastLoss', 'of_last_loss']


class LastLoss:
    """Holds the cross entropy of a microbatch, a mean over its targets."""

    def __init__(self) -> None:
        self.value: Optional[torch.Tensor] = None

    def keep(self, loss: Any) -> None:
        """Keeps what ``ComposerMPTCausalLM.loss`` returned.

        Args:
            loss: The cross entropy, or, with auxiliary losses, a dict in which
                it is called ``loss``.
        """
        loss = loss['loss'] if isinstance(loss, Mapping) else loss
        # Cloned: Composer scales the loss of a microbatch in its place.
        self.value = loss.detach().clone()


class _OfLastLoss(LanguageCrossEntropy):

    def __init__(self, loss: LastLoss):
        super().__init__()
        self._loss = loss

    def update(self, output: Any, target: torch.Tensor) -> None:
        del output
        n_targets = (target != self.ignore_index).sum()
        self.total_items += n_targets  # type: ignore
        self.sum_loss += self._loss.value * n_targets  # type: ignore


class _PerplexityOfLastLoss(_OfLastLoss, LanguagePerplexity):
    pass


def of_last_loss(metric: Metric, loss: LastLoss) -> Metric:
    """``metric``, or one that computes the same from the loss, if one does."""
    if type(metric) in (LanguageCrossEntropy, _OfLastLoss):
        return _OfLastLoss(loss)
    if type(metric) in (LanguagePerplexity, _PerplexityOfLastLoss):
        return _PerplexityOfLastLoss(loss)
    return metric
