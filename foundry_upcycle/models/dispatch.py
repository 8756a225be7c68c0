"""How tokens go to their experts and come back, without a scatter.

Shape suffixes: T tokens, D d_model, K top-k, S = T * K token-slots.
"""

from typing import Any, NamedTuple, Optional

import torch
from torch.nn import functional as F

__all__ = ['Dispatch', 'dispatch_by_expert', 'from_experts', 'to_experts']


class Dispatch(NamedTuple):
    """Token-slots sorted by expert, those of one expert by token.

    Attributes:
        order_S: Slot ``t * K + k`` at each place.
        place_TK: Place of each token's slots.
    """
    order_S: torch.Tensor
    place_TK: torch.Tensor


def dispatch_by_expert(top_experts_TK: torch.Tensor) -> Dispatch:
    """Sorts token-slots by expert."""
    order_S = top_experts_TK.flatten().argsort(stable=True)
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(len(order_S), device=order_S.device)
    return Dispatch(order_S, place_S.view(top_experts_TK.shape))


# Autograd of indexing scatters, which is slower than these gathers, and adds
# in no fixed order on a GPU.
class _ToExperts(torch.autograd.Function):

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: torch.Tensor,
        order_S: torch.Tensor,
        place_TK: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(place_TK)
        return x_TD.index_select(0, order_S // place_TK.shape[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        place_TK, = ctx.saved_tensors
        return _sum_slots(grad_outputs[0], place_TK), None, None


class _FromExperts(torch.autograd.Function):

    @staticmethod
    def forward(
        ctx: Any,
        y_SD: torch.Tensor,
        weights_TK: torch.Tensor,
        order_S: torch.Tensor,
        place_TK: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(y_SD, weights_TK, order_S, place_TK)
        return _sum_slots(y_SD, place_TK, weights_TK)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        y_SD, weights_TK, order_S, place_TK = ctx.saved_tensors
        K = place_TK.shape[1]
        grad_SD = grad_outputs[0].index_select(0, order_S // K)
        grad_y_SD = grad_weights_TK = None
        if ctx.needs_input_grad[1]:
            grad_S = torch.linalg.vecdot(y_SD, grad_SD)
            grad_weights_TK = grad_S[place_TK]
        if ctx.needs_input_grad[0]:
            grad_y_SD = grad_SD.mul_(weights_TK.flatten()[order_S, None])
        return grad_y_SD, grad_weights_TK, None, None


def _sum_slots(
    y_SD: torch.Tensor,
    place_TK: torch.Tensor,
    weights_TK: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    return F.embedding_bag(
        place_TK,
        y_SD,
        mode='sum',
        per_sample_weights=weights_TK,
    )


def to_experts(x_TD: torch.Tensor, dispatch: Dispatch) -> torch.Tensor:
    """Rows (S, D): each token K times, sorted by expert."""
    return _ToExperts.apply(x_TD, *dispatch)


def from_experts(
    y_SD: torch.Tensor,
    weights_TK: torch.Tensor,
    dispatch: Dispatch,
) -> torch.Tensor:
    """Sums (T, D) of each token's K rows, each times its weight.

    Args:
        y_SD: Rows sorted by expert.
        weights_TK: Combine weights, in the dtype of the rows.
        dispatch: How the rows were sorted.
    """
    return _FromExperts.apply(y_SD, weights_TK, *dispatch)
