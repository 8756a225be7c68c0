"""The experts: E copies of a feed-forward layer, and how tokens reach them.

Shape suffixes: T tokens, D d_model, F expert hidden, E experts, K top-k,
S = T * K token-slots.
"""

from typing import Any, Callable, Optional, Union

import torch
from torch import nn

from foundry_upcycle.models.grouped import (
    compute_dtype,
    grouped_mm,
    permute_rows,
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

    def hidden(self, project: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The hidden layer, given ``project``: weight name to projection."""
        return self.activation_fn(project('w1'))


class ExpertGLU(ExpertMLP):
    """As ``ExpertMLP``, with a gate: ``w1`` is the gate, ``v1`` the up weight.

    Args: see ``ExpertMLP``.
    """

    weight_names = ('w1', 'v1', 'w2')

    def hidden(self, project: Callable[[str], torch.Tensor]) -> torch.Tensor:
        return self.activation_fn(project('w1')) * project('v1')


MLP_TYPES: dict[str, type[ExpertMLP]] = {'glu': ExpertGLU, 'mlp': ExpertMLP}


def _forward_loop(
    mlp: ExpertMLP,
    x_TD: torch.Tensor,
    routing: RouterOutput,
) -> torch.Tensor:
    """The definition, expert by expert; what ``grouped`` is tested against."""
    out_TD = None
    for expert in range(mlp.moe_num_experts):
        token, slot = torch.where(routing.top_experts_TK == expert)
        w_FD = {n: mlp.weight_EFD(n)[expert] for n in mlp.weight_names}
        x = x_TD[token]
        hidden = mlp.hidden(lambda name, w=w_FD, x=x: x @ w[name].t())
        y = hidden @ w_FD['w2']
        y = y * routing.expert_weights_TK[token, slot, None].to(y.dtype)
        if out_TD is None:
            out_TD = y.new_zeros(x_TD.shape)
        out_TD = out_TD.index_add(0, token, y)
    assert out_TD is not None
    return out_TD


def _forward_grouped(
    mlp: ExpertMLP,
    x_TD: torch.Tensor,
    routing: RouterOutput,
) -> torch.Tensor:
    """Sorts token-slots by expert once, then one product per expert."""
    T, K = routing.top_experts_TK.shape
    order_S = routing.top_experts_TK.flatten().argsort(stable=True)
    inverse_S = torch.empty_like(order_S)
    inverse_S[order_S] = torch.arange(T * K, device=order_S.device)
    group_sizes = routing.tokens_per_expert_E.tolist()

    # Cast once, and before the rows are copied K times.
    x_TD = x_TD.to(compute_dtype(x_TD))
    slots_SD = x_TD.unsqueeze(1).expand(-1, K, -1).reshape(T * K, -1)
    x_SD = permute_rows(slots_SD, order_S, inverse_S)
    hidden_SF = mlp.hidden(
        lambda name: grouped_mm(
            x_SD,
            mlp.weight_EFD(name).transpose(1, 2),
            group_sizes,
        ),
    )
    y_SD = grouped_mm(hidden_SF, mlp.weight_EFD('w2'), group_sizes)
    y_TKD = permute_rows(y_SD, inverse_S, order_S).view(T, K, -1)
    weights_TK1 = routing.expert_weights_TK.unsqueeze(-1).to(y_TKD.dtype)
    return (y_TKD * weights_TK1).sum(dim=1)


BACKENDS: dict[str, Callable[..., torch.Tensor]] = {
    'loop': _forward_loop,
    'grouped': _forward_grouped,
}


class Experts(nn.Module):
    """Sends each token to its experts and sums what comes back.

    Args:
        d_model: Size D of a token.
        ffn_hidden_size: Hidden size F of one expert.
        moe_num_experts: Number of experts E.
        mlp_type: A key of ``MLP_TYPES``.
        activation_fn: Elementwise activation.
        backend: A key of ``BACKENDS``; the choice never changes results
            beyond rounding.
        device: Where the parameters live.
    """

    def __init__(
        self,
        d_model: int,
        ffn_hidden_size: int,
        moe_num_experts: int,
        mlp_type: str,
        activation_fn: _Activation,
        backend: str = 'grouped',
        device: Optional[str] = None,
    ):
        super().__init__()
        self.backend = backend
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
        return BACKENDS[self.backend](self.mlp, x_TD, routing)


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
