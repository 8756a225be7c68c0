"""The experts: E copies of a feed-forward layer, and how tokens reach them.

Shape suffixes: T tokens, D d_model, F expert hidden, E experts, K top-k,
S = T * K token-slots.
"""

from functools import partial
from typing import Any, Callable, Optional, Union

import torch
from torch import nn

from foundry_upcycle.models.dispatch import (
    dispatch_by_expert,
    from_experts,
    to_experts,
)
from foundry_upcycle.models.grouped import (
    compute_dtype,
    ffn_at_once,
    ffn_one_by_one,
    is_aligned,
    suits_grouped_mm,
    traces_grouped_mm,
)
from foundry_upcycle.models.router import RouterOutput

__all__ = [
    'BACKENDS',
    'MLP_TYPES',
    'ExpertGLU',
    'ExpertMLP',
    'Experts',
    'init_experts',
]

_Activation = Callable[[torch.Tensor], torch.Tensor]


class ExpertMLP(nn.Module):
    """Parameters of E two-layer perceptrons, stacked as MegaBlocks does.

    ``w1`` and ``w2`` are (E * F, D). Expert e owns rows e * F to (e + 1) * F:
    ``w1`` there is the dense up projection's weight, ``w2`` the transposed
    weight of the down projection.

    Args:
        d_model: Size D of a token.
        ffn_hidden_size: Hidden size F of one expert.
        moe_num_experts: Number of experts E.
        activation_fn: Elementwise activation.
        device: Where the parameters live.
    """

    weight_names: tuple[str, ...] = ('w1', 'w2')

    def __init__(
        self,
        d_model: int,
        ffn_hidden_size: int,
        moe_num_experts: int,
        activation_fn: _Activation,
        device: Optional[str] = None,
    ):
        super().__init__()
        self.moe_num_experts = moe_num_experts
        self.activation_fn = activation_fn
        for name in self.weight_names:
            weight = torch.empty(
                moe_num_experts * ffn_hidden_size,
                d_model,
                device=device,
            )
            setattr(self, name, nn.Parameter(weight))

    def weight_EFD(self, name: str) -> torch.Tensor:
        weight = getattr(self, name)
        return weight.view(self.moe_num_experts, -1, weight.shape[-1])

    def weights_EFD(self) -> list[torch.Tensor]:
        """``w2``, then what a token is projected by, as ``hidden`` takes it."""
        *ups, w2 = self.weight_names
        return [self.weight_EFD(name) for name in (w2, *ups)]

    def hidden(self, *projections: torch.Tensor) -> torch.Tensor:
        """The hidden layer, of what a token's projections are."""
        return self.activation_fn(projections[0])

    def output(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """What one expert makes of tokens, (T, D)."""
        w2_FD, *ups_FD = (w_EFD[expert] for w_EFD in self.weights_EFD())
        return self.hidden(*(x_TD @ up_FD.t() for up_FD in ups_FD)) @ w2_FD


class ExpertGLU(ExpertMLP):
    """As ``ExpertMLP``, with a gate: ``w1`` is the gate, ``v1`` the up weight.

    Args: see ``ExpertMLP``.
    """

    weight_names = ('w1', 'v1', 'w2')

    def hidden(self, *projections: torch.Tensor) -> torch.Tensor:
        gate, up = projections
        return self.activation_fn(gate) * up


MLP_TYPES: dict[str, type[ExpertMLP]] = {'glu': ExpertGLU, 'mlp': ExpertMLP}


def _forward_loop(
    mlp: ExpertMLP,
    x_TD: torch.Tensor,
    routing: RouterOutput,
) -> torch.Tensor:
    """The definition, expert by expert; what the others are tested against."""
    out_TD = None
    for expert in range(mlp.moe_num_experts):
        token, slot = torch.where(routing.top_experts_TK == expert)
        y = mlp.output(expert, x_TD[token])
        y = y * routing.expert_weights_TK[token, slot, None].to(y.dtype)
        if out_TD is None:
            out_TD = y.new_zeros(x_TD.shape)
        out_TD = out_TD.index_add(0, token, y)
    assert out_TD is not None
    return out_TD


def _sorted(
    ffn: Callable[..., torch.Tensor],
    mlp: ExpertMLP,
    x_TD: torch.Tensor,
    routing: RouterOutput,
) -> torch.Tensor:
    """Sorts token-slots by expert once; ``ffn`` computes the sorted rows."""
    dtype = compute_dtype(x_TD)
    dispatch = dispatch_by_expert(routing.top_experts_TK)
    # Cast once, and before the rows are copied K times.
    x_SD = to_experts(x_TD.to(dtype), dispatch)
    weights_EFD = [w_EFD.to(dtype) for w_EFD in mlp.weights_EFD()]
    y_SD = ffn(mlp.hidden, x_SD, weights_EFD, routing.tokens_per_expert_E)
    weights_TK = routing.expert_weights_TK.to(dtype)
    return from_experts(y_SD, weights_TK, dispatch)


BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    'loop': _forward_loop,
    'grouped': partial(_sorted, ffn_one_by_one),
    'grouped_mm': partial(_sorted, ffn_at_once),
}


class Experts(nn.Module):
    """Sends each token to its experts and sums what comes back.

    Args:
        d_model: Size D of a token.
        ffn_hidden_size: Hidden size F of one expert.
        moe_num_experts: Number of experts E.
        mlp_type: A key of ``MLP_TYPES``.
        activation_fn: Elementwise activation.
        backend: A key of ``BACKENDS``, or ``auto``: ``grouped_mm`` where that
            is fast (bfloat16 on a GPU of compute capability 8.0 or more, with
            a torch that has it), ``grouped`` elsewhere. The choice never
            changes results beyond rounding.
        device: Where the parameters live.
    """

    def __init__(
        self,
        d_model: int,
        ffn_hidden_size: int,
        moe_num_experts: int,
        mlp_type: str,
        activation_fn: _Activation,
        backend: str = 'auto',
        device: Optional[str] = None,
    ):
        super().__init__()
        self.backend = backend
        self.is_aligned = is_aligned(d_model, ffn_hidden_size)
        self.mlp = MLP_TYPES[mlp_type](
            d_model=d_model,
            ffn_hidden_size=ffn_hidden_size,
            moe_num_experts=moe_num_experts,
            activation_fn=activation_fn,
            device=device,
        )

    def forward(
        self,
        x_TD: torch.Tensor,
        routing: RouterOutput,
    ) -> torch.Tensor:
        return BACKENDS[self._backend(x_TD)](self.mlp, x_TD, routing)

    def _backend(self, x_TD: torch.Tensor) -> str:
        if self.backend == 'auto':
            at_once = self.is_aligned and suits_grouped_mm(x_TD)
            return 'grouped_mm' if at_once else 'grouped'
        if self.backend == 'grouped_mm' and not traces_grouped_mm(x_TD):
            return 'grouped'
        return self.backend


def init_experts(
    module: nn.Module,
    init_fn_: Callable[[torch.Tensor], Any],
    init_div_is_residual: Union[int, float, str, bool],
    div_is_residual: float,
    **kwargs: Any,
) -> bool:
    """Foundry ``module_init_fn``: each expert as the dense layer it replaces.

    Foundry calls this for every module of every model.

    Returns:
        Whether ``module`` held experts and is initialised now.
    """
    del kwargs  # Foundry passes every initialisation argument to everyone.
    if not isinstance(module, ExpertMLP):
        return False
    from llmfoundry.models.utils.param_init_fns import materialize_tensor

    for name in module.weight_names:
        with materialize_tensor(getattr(module, name)) as weight:
            for expert_FD in weight.view(
                    module.moe_num_experts,
                    -1,
                    weight.shape[-1],
            ):
                # w2 is stored transposed; the fan is that of a dense (D, F).
                init_fn_(expert_FD.t() if name == 'w2' else expert_FD)
            if name == 'w2' and init_div_is_residual is not False:
                weight.div_(div_is_residual)
    return True
