"""The callback ``router_monitor``: what the routers do while training."""

import math
import re
from dataclasses import dataclass
from typing import Any, Callable, Union

import torch
from composer import Callback, Logger, State, Time
from composer.core import Event, TimeUnit
from composer.utils import create_interval_scheduler, dist
from torch import nn
from torch.distributed.tensor import DTensor

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.router import RouterOutput

__all__ = ['RouterMonitor', 'expert_distance']

_ROUTER_NAME = re.compile(r'.*\.blocks\.(\d+)\..*ffn\.router')


@dataclass
class _Sums:
    """Sums over the token-slots a router saw since the last log."""
    counts_E: torch.Tensor
    scores_E: torch.Tensor
    entropy: torch.Tensor
    n_tokens: torch.Tensor

    def add(self, scores_TE: torch.Tensor, counts_E: torch.Tensor) -> None:
        scores_TE = scores_TE.detach().double()
        self.counts_E += counts_E
        self.scores_E += scores_TE.sum(dim=0)
        self.entropy += torch.special.entr(scores_TE).sum()
        self.n_tokens += scores_TE.shape[0]

    @classmethod
    def zeros(cls, n_experts: int, device: torch.device) -> '_Sums':

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.double, device=device)

        return cls(zeros(n_experts), zeros(n_experts), zeros(), zeros())

    def metrics(self) -> dict[str, float]:
        """Metrics over all ranks, by name."""
        packed = torch.cat([
            self.counts_E,
            self.scores_E,
            self.entropy[None],
            self.n_tokens[None],
        ])
        dist.all_reduce(packed)
        E = self.counts_E.numel()
        counts_E, scores_E, (entropy, n_tokens) = packed.split([E, E, 2])
        shares_E = counts_E / counts_E.sum()
        metrics = {
            f'expert_{expert:02d}/share': share.item()
            for expert, share in enumerate(shares_E)
        }
        metrics['imbalance'] = (shares_E.max() * E).item()
        metrics['entropy'] = (entropy / n_tokens).item()
        metrics['load_balancing_loss'] = (
            E * shares_E.dot(scores_E / n_tokens)
        ).item()
        return metrics


class RouterMonitor(Callback):
    """Logs what each router does, per layer and in the mean over layers.

    Under ``router/layer_{i}/`` and ``router/mean/``, over all tokens of all
    ranks since the last log:

    - ``expert_{e}/share``: share of token-slots that went to expert e;
    - ``imbalance``: largest share over the mean share (1: balanced, E: all
      to one);
    - ``entropy``: mean entropy of the router's probabilities, in nats (at
      most ln E);
    - ``load_balancing_loss``: E * sum over experts of share * mean
      probability (1: balanced). The training loss adds ``moe_loss_weight``
      times the mean of this per microbatch and rank;
    - ``expert_distance``: mean cosine distance (1 - cosine) of all pairs of
      experts, over all their weights; 0 right after upcycling by copy. It
      gathers one layer's experts at a time.

    Works for every FFN whose router returns probabilities first and expert
    indices last, as those of ``torch_dmoe`` and MegaBlocks do.

    What was seen since the last log is logged when training ends, too.

    Args:
        interval: How often to log, such as ``50ba``; in the units of
            ``eval_interval``, a bare number being epochs.

    Raises:
        ConfigError: ``interval`` is none, or the model has no routers.
    """

    def __init__(self, interval: Union[str, int, Time] = '10ba'):
        self.is_due = _scheduler(interval)
        self.sums: dict[str, _Sums] = {}
        self.ffns: dict[str, nn.Module] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        del logger
        if self.ffns:
            return  # A second `fit` of the same trainer.
        for name, module in state.model.named_modules():
            match = _ROUTER_NAME.fullmatch(name)
            if match is None:
                continue
            layer = f'layer_{int(match[1]):02d}'
            self.ffns[layer] = state.model.get_submodule(
                name.removesuffix('.router'),
            )
            module.register_forward_hook(self._make_hook(layer))
        if not self.ffns:
            raise ConfigError(
                'callbacks.router_monitor',
                type(state.model).__name__,
                'the model has no routers.',
                'remove the callback, or train an upcycled_mpt.',
            )

    def _make_hook(self, layer: str) -> Any:

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del args
            if not module.training:
                return
            scores_TE = output[0]
            E = scores_TE.shape[-1]
            if layer not in self.sums:
                self.sums[layer] = _Sums.zeros(E, scores_TE.device)
            if isinstance(output, RouterOutput):
                counts_E = output.tokens_per_expert_E
            else:
                # MegaBlocks' routers give logits, too, or not: in between.
                counts_E = torch.bincount(output[-1].flatten(), minlength=E)
            self.sums[layer].add(scores_TE, counts_E)

        return hook

    def batch_end(self, state: State, logger: Logger) -> None:
        if self.is_due(state, Event.BATCH_END):
            self._log(logger)

    def epoch_end(self, state: State, logger: Logger) -> None:
        if self.is_due(state, Event.EPOCH_END):
            self._log(logger)

    def fit_end(self, state: State, logger: Logger) -> None:
        del state
        self._log(logger)

    def _log(self, logger: Logger) -> None:
        if not self.sums:
            return  # No batch since the last log.
        metrics: dict[str, float] = {}
        totals: dict[str, float] = {}
        for layer, ffn in self.ffns.items():
            of_layer = self.sums[layer].metrics()
            of_layer['expert_distance'] = expert_distance(ffn)
            for name, value in of_layer.items():
                metrics[f'router/{layer}/{name}'] = value
                totals[name] = totals.get(name, 0.0) + value
        for name, total in totals.items():
            metrics[f'router/mean/{name}'] = total / len(self.ffns)
        self.sums.clear()
        logger.log_metrics(metrics)


def _scheduler(interval: Any) -> Callable[[State, Event], bool]:
    units = ('ep', 'ba', 'sp', 'tok', 'dur', 'sec')
    try:
        time = Time.from_input(interval, TimeUnit.EPOCH)
        is_usable = time.unit.value in units and 0 < time.value < math.inf
    except (TypeError, ValueError, RuntimeError):
        is_usable = False
    if not is_usable or isinstance(interval, bool):
        raise ConfigError(
            'callbacks.router_monitor.interval',
            interval,
            'it is not an interval of a training.',
            'set it to a number above 0 and its unit, such as 10ba; the units '
            f'are {units}.',
        )
    return create_interval_scheduler(
        interval,
        include_end_of_training=False,  # As `fit_end` logs.
        checkpoint_events=False,
    )


@torch.no_grad()
def expert_distance(ffn: nn.Module) -> float:
    """Mean cosine distance of all pairs of a layer's experts.

    Args:
        ffn: A layer with ``router.layer.weight`` (E, D) and
            ``experts.mlp.w1``, ``w2`` and perhaps ``v1``, each (E * F, D).

    Returns:
        0 when all experts are equal, 1 when they are orthogonal.
    """
    router: Any = ffn.router
    experts: Any = ffn.experts
    E = int(router.layer.weight.shape[0])
    if E == 1:
        return 0.0
    gram_EE: Any = 0
    for weight in experts.parameters():
        full = weight.full_tensor() if isinstance(weight, DTensor) else weight
        flat = full.reshape(E, -1).float()
        gram_EE = gram_EE + (flat @ flat.t()).double()
    norms_E = gram_EE.diagonal().sqrt()
    cosine_EE = gram_EE / (norms_E[:, None] * norms_E[None, :])
    off_diagonal = (cosine_EE.sum() - cosine_EE.trace()) / (E * (E - 1))
    return 1 - off_diagonal.item()
