"""Matrix products of contiguous groups of rows, one weight matrix a group.

Shape suffixes: S rows sorted by group, E groups, M and N matrix sizes.
"""

from typing import Any, Sequence

import torch

__all__ = ['compute_dtype', 'grouped_mm', 'permute_rows']


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype a matrix product of ``x`` runs in: autocast's where it is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


class _PermuteRows(torch.autograd.Function):

    @staticmethod
    def forward(
        ctx: Any,
        x_SM: torch.Tensor,
        order_S: torch.Tensor,
        inverse_S: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(inverse_S)
        return x_SM.index_select(0, order_S)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        inverse_S, = ctx.saved_tensors
        return grad_outputs[0].index_select(0, inverse_S), None, None


def permute_rows(
    x_SM: torch.Tensor,
    order_S: torch.Tensor,
    inverse_S: torch.Tensor,
) -> torch.Tensor:
    """``x_SM[order_S]`` for a permutation.

    Its gradient is a gather by the inverse permutation. Autograd of plain
    indexing scatters instead, which is slower, and adds in no fixed order on
    a GPU.

    Args:
        x_SM: Rows.
        order_S: A permutation of 0 ... S - 1.
        inverse_S: Its inverse.
    """
    return _PermuteRows.apply(x_SM, order_S, inverse_S)


class _GroupedMM(torch.autograd.Function):
    # One product an expert, written in place: autograd of slices and a
    # concatenation would copy inputs, outputs and every weight gradient.

    @staticmethod
    def forward(
        ctx: Any,
        x_SM: torch.Tensor,
        w_EMN: torch.Tensor,
        group_sizes: tuple[int, ...],
    ) -> torch.Tensor:
        ctx.save_for_backward(x_SM, w_EMN)
        ctx.group_sizes = group_sizes
        out_SN = x_SM.new_empty(x_SM.shape[0], w_EMN.shape[2])
        for x, w, out in zip(
                x_SM.split(group_sizes),
                w_EMN,
                out_SN.split(group_sizes),
        ):
            torch.mm(x, w, out=out)
        return out_SN

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        x_SM, w_EMN = ctx.saved_tensors
        grads = grad_outputs[0].contiguous().split(ctx.group_sizes)
        grad_x_SM = grad_w_EMN = None
        if ctx.needs_input_grad[0]:
            grad_x_SM = torch.empty_like(x_SM)
            for grad, w, out in zip(
                    grads,
                    w_EMN,
                    grad_x_SM.split(ctx.group_sizes),
            ):
                torch.mm(grad, w.t(), out=out)
        if ctx.needs_input_grad[1]:
            grad_w_EMN = torch.empty_like(w_EMN)
            for x, grad, out in zip(
                    x_SM.split(ctx.group_sizes),
                    grads,
                    grad_w_EMN,
            ):
                torch.mm(x.t(), grad, out=out)
        return grad_x_SM, grad_w_EMN, None


def grouped_mm(
    x_SM: torch.Tensor,
    w_EMN: torch.Tensor,
    group_sizes: Sequence[int],
) -> torch.Tensor:
    """Multiplies group e of the rows with ``w_EMN[e]``.

    Args:
        x_SM: Rows, group by group.
        w_EMN: One matrix a group; may be a transposed view.
        group_sizes: E row counts that sum to S; a count may be 0.

    Returns:
        Products (S, N), in the ``compute_dtype`` of ``x_SM``.
    """
    dtype = compute_dtype(x_SM)
    return _GroupedMM.apply(x_SM.to(dtype), w_EMN.to(dtype), tuple(group_sizes))
