"""Feed-forward layers of contiguous groups of rows, one a group.

Shape suffixes: S rows sorted by group, E groups, D row size, F hidden size.
"""

from typing import Any, Callable, Optional, Sequence

import torch
from torch.nn import functional as F

__all__ = [
    'GROUPED_MM',
    'ROW_MULTIPLE',
    'compute_dtype',
    'ffn_at_once',
    'ffn_one_by_one',
    'is_aligned',
    'suits_grouped_mm',
    'traces_grouped_mm',
]

Hidden = Callable[..., torch.Tensor]

# Of a grouped product's row sizes: 16 bytes in bfloat16.
ROW_MULTIPLE = 8
# torch 2.7 has neither; the private one came first.
GROUPED_MM: Optional[Callable[..., torch.Tensor]] = getattr(
    F,
    'grouped_mm',
    getattr(torch, '_grouped_mm', None),
)


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype a matrix product of ``x`` runs in: autocast's where it is on."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def is_aligned(*row_sizes: int) -> bool:
    """Whether grouped products take rows of these sizes."""
    return not any(size % ROW_MULTIPLE for size in row_sizes)


def suits_grouped_mm(x: torch.Tensor) -> bool:
    """Whether ``ffn_at_once`` is the fast way for these rows."""
    if GROUPED_MM is None or not x.is_cuda:
        return False
    # In other dtypes, torch goes group by group and waits for their sizes.
    is_fast = compute_dtype(x) == torch.bfloat16
    return is_fast and torch.cuda.get_device_properties(x.device).major >= 8


def traces_grouped_mm(x: torch.Tensor) -> bool:
    """Whether ``ffn_at_once`` runs now; torch compiles it in bfloat16 only."""
    is_traced = compute_dtype(x) == torch.bfloat16
    return is_traced or not torch.compiler.is_compiling()


class _OneByOne(torch.autograd.Function):
    # One group after the other, written in place: autograd of slices and a
    # concatenation would copy inputs, outputs and every weight gradient. Only
    # projections are kept for backward, which computes the hidden layer again.

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Hidden,
        sizes: Sequence[int],
        x_SD: torch.Tensor,
        w2_EFD: torch.Tensor,
        *ups_EFD: torch.Tensor,
    ) -> torch.Tensor:
        hidden_size = w2_EFD.shape[1]
        projections_SF = [
            x_SD.new_empty(len(x_SD), hidden_size) for _ in ups_EFD
        ]
        out_SD = torch.empty_like(x_SD)
        for group, x, out, *projections in _by_group(
                sizes,
                x_SD,
                out_SD,
                *projections_SF,
        ):
            for projection, up_EFD in zip(projections, ups_EFD):
                torch.mm(x, up_EFD[group].t(), out=projection)
            torch.mm(hidden(*projections), w2_EFD[group], out=out)
        ctx.hidden = hidden
        ctx.sizes = sizes
        ctx.save_for_backward(x_SD, w2_EFD, *ups_EFD, *projections_SF)
        return out_SD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        x_SD, *tensors = ctx.saved_tensors
        n_weights = len(tensors) // 2 + 1
        weights_EFD, projections_SF = tensors[:n_weights], tensors[n_weights:]
        grads = [
            torch.empty_like(tensor) if needed else None
            for tensor, needed in zip(
                (x_SD, *weights_EFD),
                ctx.needs_input_grad[2:],
            )
        ]
        grad_x_SD, *grad_weights = grads
        for group, grad, x, grad_x, *projections in _by_group(
                ctx.sizes,
                grad_outputs[0].contiguous(),
                x_SD,
                grad_x_SD,
                *projections_SF,
        ):
            weights = [weight_EFD[group] for weight_EFD in weights_EFD]
            _backward(
                ctx.hidden,
                grad,
                x,
                projections,
                weights,
                grad_x,
                [
                    None if each is None else each[group]
                    for each in grad_weights
                ],
            )
        return None, None, *grads


def _by_group(
    sizes: Sequence[int],
    *tensors: Optional[torch.Tensor],
) -> zip:
    """Each group's index, and its rows of each tensor."""
    return zip(
        range(len(sizes)),
        *([None] * len(sizes) if tensor is None else tensor.split(sizes)
          for tensor in tensors),
    )


def _backward(
    hidden: Hidden,
    grad: torch.Tensor,
    x: torch.Tensor,
    projections: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    grad_x: Optional[torch.Tensor],
    grad_weights: Sequence[Optional[torch.Tensor]],
) -> None:
    """Writes one group's gradients into ``grad_x`` and ``grad_weights``."""
    w2, *ups = weights
    grad_w2, *grad_ups = grad_weights
    inputs = [each.detach().requires_grad_() for each in projections]
    with torch.enable_grad():
        h = hidden(*inputs)
    if grad_w2 is not None:
        torch.mm(h.detach().t(), grad, out=grad_w2)
    grad_projections = torch.autograd.grad(h, inputs, grad @ w2.t())
    for projection, grad_up in zip(grad_projections, grad_ups):
        if grad_up is not None:
            torch.mm(projection.t(), x, out=grad_up)
    if grad_x is not None:
        torch.mm(grad_projections[0], ups[0], out=grad_x)
        for projection, up in zip(grad_projections[1:], ups[1:]):
            torch.addmm(grad_x, projection, up, out=grad_x)


def ffn_one_by_one(
    hidden: Hidden,
    x_SD: torch.Tensor,
    weights_EFD: Sequence[torch.Tensor],
    sizes_E: torch.Tensor,
) -> torch.Tensor:
    """``hidden(x @ up.T, ...) @ w2`` of each group's rows and weights.

    The host waits for ``sizes_E``.

    Args:
        hidden: Elementwise, of as many tensors (rows, F) as there are ``up``.
        x_SD: Rows, group by group.
        weights_EFD: ``w2``, then each ``up``, in the dtype of the rows.
        sizes_E: Row counts, int64, that sum to S; a count may be 0.

    Returns:
        Rows (S, D).
    """
    return _OneByOne.apply(hidden, sizes_E.tolist(), x_SD, *weights_EFD)


def ffn_at_once(
    hidden: Hidden,
    x_SD: torch.Tensor,
    weights_EFD: Sequence[torch.Tensor],
    sizes_E: torch.Tensor,
) -> torch.Tensor:
    """As ``ffn_one_by_one``, by torch's grouped products, without a wait.

    D and F must be multiples of ``ROW_MULTIPLE``.

    Args: see ``ffn_one_by_one``.
    """
    assert GROUPED_MM is not None  # Who builds the layer has looked.
    w2_EFD, *ups_EFD = weights_EFD
    ends_E = sizes_E.cumsum(0, dtype=torch.int32)
    hidden_SF = hidden(
        *(
            GROUPED_MM(x_SD, up_EFD.transpose(1, 2), offs=ends_E)
            for up_EFD in ups_EFD
        ),
    )
    return GROUPED_MM(hidden_SF, w2_EFD, offs=ends_E)
