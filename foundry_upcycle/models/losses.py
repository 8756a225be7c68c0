"""Auxiliary losses of a mixture of experts.

Shape suffixes: T tokens, E experts.
"""

from typing import Any, Callable, Mapping, Optional, Sequence

import torch

from foundry_upcycle.models.router import RouterOutput

__all__ = ['Losses', 'load_balancing_loss', 'router_z_loss']


class Losses(dict):
    """Losses by name, with their ``total``; passes for that one as well.

    Composer's trainer minimises and logs a dict. Callbacks of Foundry
    (``kill_loss_spike``, ``fdiff_metrics``) take nothing but a tensor, which
    this says it is: they get the total, as it was before the trainer scaled
    ``total``, in place, by the microbatch's share of the batch.

    Args:
        losses: Scalars by name.
        total: What is minimised; None: their sum.
    """

    def __init__(
        self,
        losses: Mapping[str, torch.Tensor],
        total: Optional[torch.Tensor] = None,
    ):
        if total is None:
            total = torch.stack([*losses.values()]).sum()
        dict.__init__(self, {'total': total, **losses})
        self._total = total.detach().clone()

    @property
    def __class__(self) -> type:
        return torch.Tensor

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        del types
        args = [a._total if type(a) is cls else a for a in args]
        return function(*args, **(kwargs or {}))

    def item(self) -> float:
        return self._total.item()


def load_balancing_loss(
    routings: Sequence[RouterOutput],
    weight: float,
) -> torch.Tensor:
    """MegaBlocks' batched load-balancing loss of one microbatch.

    ``weight * E / (L * T * K) * sum over layers and experts of
    (token-slots of the expert) * (its mean probability over the T tokens)``:
    Switch Transformer (arXiv 2101.03961) equations 4 to 6 for K experts a
    token, averaged over L layers. Perfect balance gives ``weight``.

    Left out, as in MegaBlocks: any exchange between ranks (each balances its
    own tokens), and the attention mask (padding that reaches the layer counts
    as tokens). Deviation: the mean probabilities are float32, which MegaBlocks does only with
    ``moe_lbl_in_fp32``.

    Args:
        routings: One router output per layer.
        weight: Coefficient (``moe_loss_weight``).

    Returns:
        A scalar, differentiable through the probabilities only.
    """
    T, K = routings[0].top_experts_TK.shape
    E = routings[0].scores_TE.shape[1]
    counts_LE = torch.stack([r.tokens_per_expert_E for r in routings])
    scores_LE = torch.stack([r.scores_TE.mean(dim=0) for r in routings])
    scale = weight * E / (len(routings) * T * K)
    return scale * (counts_LE.to(scores_LE.dtype) * scores_LE).sum()


def router_z_loss(
    routings: Sequence[RouterOutput],
    weight: float,
) -> torch.Tensor:
    """ST-MoE's router z-loss (arXiv 2202.08906, equation 5), layer average.

    ``weight * mean over layers and tokens of logsumexp(logits)^2``.

    Args:
        routings: One router output per layer.
        weight: Coefficient (``moe_zloss_weight``).

    Returns:
        A scalar.
    """
    per_layer = [r.logits_TE.logsumexp(-1).square().mean() for r in routings]
    return weight * torch.stack(per_layer).mean()
