"""The feed-forward layer ``upcycled_dmoe``: a dropless mixture of experts."""

from functools import partial
from typing import Any, Callable, Mapping, Optional, Sequence, Union

import torch
from torch import nn

from foundry_upcycle.config import is_number, is_whole, resolve_ffn_hidden_size
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.models.experts import BACKENDS, MLP_TYPES, Experts
from foundry_upcycle.models.grouped import GROUPED_MM, ROW_MULTIPLE, is_aligned
from foundry_upcycle.models.router import Router, RouterOutput
from foundry_upcycle.planning.top_k import TopK, read_top_k

__all__ = ['UpcycledDMoE', 'build_upcycled_dmoe']

# Beyond what any model has; more would be asked of the memory first.
_MAX_EXPERTS = 1 << 16
_MAX_HIDDEN = 1 << 24
# What Foundry's FFNs have by default.
_GELU = {'name': 'gelu', 'approximate': 'none'}


class UpcycledDMoE(nn.Module):
    """Dropless top-K mixture of experts; replaces a dense MPT FFN.

    Parameters, laid out as MegaBlocks and Foundry's ``torch_dmoe`` do:
    ``router.layer.weight`` (E, D); ``experts.mlp.w1``, ``v1`` (GLU only) and
    ``w2``, each (E * F, D).

    Args:
        d_model: Size D of a token.
        ffn_hidden_size: Hidden size F of one expert.
        moe_num_experts: Number of experts E.
        top_k: Experts a token goes to, K, by batch where it varies. No
            parameter depends on it: a checkpoint may be evaluated with another
            K than it was trained with.
        mlp_type: ``glu`` or ``mlp``.
        activation_fn: Elementwise activation of the experts.
        moe_normalize_expert_weights: See ``Router``. With 1, a model whose
            experts are copies of a dense layer computes what that computed.
        moe_jitter_eps: See ``Router``.
        moe_loss_weight: Coefficient of the load-balancing loss.
        moe_zloss_weight: Coefficient of the router z-loss.
        backend: See ``Experts``.
        device: Where the parameters live.

    Raises:
        ConfigError: It is trained in a model that leaves its losses out.
    """

    def __init__(
        self,
        d_model: int,
        ffn_hidden_size: int,
        moe_num_experts: int,
        top_k: TopK,
        mlp_type: str,
        activation_fn: Callable[[torch.Tensor], torch.Tensor],
        moe_normalize_expert_weights: Optional[Union[int, float]] = 1,
        moe_jitter_eps: Optional[float] = None,
        moe_loss_weight: float = 0.0,
        moe_zloss_weight: float = 0.0,
        backend: str = 'auto',
        device: Optional[str] = None,
    ):
        super().__init__()
        self.moe_loss_weight = moe_loss_weight
        self.moe_zloss_weight = moe_zloss_weight
        self.top_k = top_k
        self.router = Router(
            d_model=d_model,
            moe_num_experts=moe_num_experts,
            moe_top_k=top_k.largest,
            varies=top_k.varies,
            moe_normalize_expert_weights=moe_normalize_expert_weights,
            moe_jitter_eps=moe_jitter_eps,
            device=device,
        )
        self.experts = Experts(
            d_model=d_model,
            ffn_hidden_size=ffn_hidden_size,
            moe_num_experts=moe_num_experts,
            mlp_type=mlp_type,
            activation_fn=activation_fn,
            backend=backend,
            device=device,
        )
        # While a list, each forward appends its routing to it. The model sets
        # it around its own forward, so the second forward of a checkpointed
        # block, which runs in backward, adds nothing.
        self.routing_sink: Optional[list[RouterOutput]] = None
        # Of the last forward that was recorded: whether autograd saw it.
        self.routed_with_grad = False
        # Set by the model that adds this layer's losses to its own.
        self.losses_are_collected = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (..., D) to (..., D)."""
        x_TD = x.reshape(-1, x.shape[-1])
        routing = self.router(x_TD)
        if self.routing_sink is not None:
            self.routing_sink.append(routing)
            self.routed_with_grad = torch.is_grad_enabled()
        elif self.training and not self.losses_are_collected:
            self._check_no_losses()
        return self.experts(x_TD, routing).view(x.shape)

    def _check_no_losses(self) -> None:
        if self.moe_loss_weight or self.moe_zloss_weight:
            raise ConfigError(
                'model.name',
                'mpt_causal_lm',
                'the load-balancing loss of upcycled_dmoe would be left out '
                'of the training loss.',
                'set model.name: upcycled_mpt (or moe_loss_weight: 0 and '
                'moe_zloss_weight: 0).',
            )


def build_upcycled_dmoe(
    d_model: int,
    expansion_ratio: Union[int, float],
    ffn_hidden_size: Optional[int] = None,
    ffn_act_fn: Optional[Mapping[str, Any]] = None,
    device: Optional[str] = None,
    bias: bool = True,
    moe_num_experts: int = 8,
    moe_top_k: Union[int, Mapping[str, Any]] = 2,
    mlp_type: str = 'glu',
    moe_normalize_expert_weights: Optional[Union[int, float]] = 1,
    moe_jitter_eps: Optional[float] = None,
    moe_loss_weight: float = 0.01,
    moe_zloss_weight: float = 0.0,
    backend: str = 'auto',
    moe_layers: Optional[Sequence[int]] = None,
    fc_type: Optional[dict[str, Any]] = None,
    **unknown: Any,
) -> UpcycledDMoE:
    """Builds the layer from ``model.ffn_config``; keys are its arguments.

    Args:
        d_model: Size D of a token.
        expansion_ratio: F / D, where ``ffn_hidden_size`` is not given.
        ffn_hidden_size: Hidden size F of one expert.
        ffn_act_fn: ``name`` of a ``torch.nn.functional`` activation and its
            arguments; exact gelu by default, as for every MPT FFN.
        device: Where the parameters live.
        bias: Foundry passes ``not no_bias`` to every FFN; the experts hold no
            biases whatever it says, as those of ``torch_dmoe``.
        moe_num_experts: Number of experts E.
        moe_top_k: Experts a token goes to: a number; or one for each batch of
            a training, drawn (``{sample: {1: 0.5, 2: 0.5}}``, probabilities)
            or by schedule (``{until: {0.7dur: 2, 1dur: 1}}``), for
            ``upcycled_mpt`` in Composer's Trainer. All else uses the largest.
            See ``planning/top_k.py``.
        mlp_type: ``glu`` (upcycles ``mptglu``) or ``mlp`` (``mptmlp``).
        moe_normalize_expert_weights: See ``Router``.
        moe_jitter_eps: See ``Router``.
        moe_loss_weight: Coefficient of the load-balancing loss, which
            ``upcycled_mpt`` adds to the training loss.
        moe_zloss_weight: Coefficient of the router z-loss, likewise.
        backend: ``auto``, ``grouped_mm``, ``grouped`` or ``loop`` (the
            reference); see ``Experts``.
        moe_layers: Indices of the blocks that are mixtures, for
            ``upcycled_mpt`` to read; a layer does not know its own.
        fc_type: Foundry passes it to every FFN; the experts are plain
            matrices whatever it says.
        unknown: Refused.

    Raises:
        ConfigError: A key is unknown or its value can't be used.
    """
    del fc_type, bias
    if unknown:
        key, value = next(iter(unknown.items()))
        raise ConfigError(
            f'model.ffn_config.{key}',
            value,
            'upcycled_dmoe has no such setting.',
            'remove it, or see build_upcycled_dmoe for the names.',
        )
    if moe_layers is not None:
        raise ConfigError(
            'model.ffn_config.moe_layers',
            moe_layers,
            'every block of this model would be a mixture of experts.',
            'set model.name: upcycled_mpt (or moe_layers: null).',
        )
    for key, name, names in (
        ('mlp_type', mlp_type, {*MLP_TYPES}),
        ('backend', backend, {'auto', *BACKENDS}),
    ):
        _check(key, name, isinstance(name, str) and name in names, f'{names}')
    hidden, order = ffn_hidden_size, moe_normalize_expert_weights
    _check(
        'ffn_hidden_size',
        hidden,
        hidden is None or (is_whole(hidden) and 1 <= hidden <= _MAX_HIDDEN),
        f'a number from 1 to {_MAX_HIDDEN}',
    )
    _check(
        'moe_normalize_expert_weights',
        order,
        order is None or (is_number(order) and order > 0),
        'null, or a number above 0',
    )
    E = moe_num_experts
    _check(
        'moe_num_experts',
        E,
        is_whole(E) and 1 <= E <= _MAX_EXPERTS,
        f'a number from 1 to {_MAX_EXPERTS}',
    )
    top_k = read_top_k(moe_top_k, E)
    for key, weight in (
        ('moe_loss_weight', moe_loss_weight),
        ('moe_zloss_weight', moe_zloss_weight),
    ):
        ok = is_number(weight) and 0 <= weight < 1e30
        _check(key, weight, ok, '0 or more')
    jitter = moe_jitter_eps
    _check(
        'moe_jitter_eps',
        jitter,
        jitter is None or (is_number(jitter) and 0 < jitter < 1),
        'null, or a number between 0 and 1',
    )
    F = resolve_ffn_hidden_size(d_model, expansion_ratio, ffn_hidden_size)
    if backend == 'grouped_mm':
        _check_grouped_mm(d_model, F)
    return UpcycledDMoE(
        d_model=d_model,
        ffn_hidden_size=F,
        moe_num_experts=moe_num_experts,
        top_k=top_k,
        mlp_type=mlp_type,
        activation_fn=_activation(ffn_act_fn),
        moe_normalize_expert_weights=moe_normalize_expert_weights,
        moe_jitter_eps=moe_jitter_eps,
        moe_loss_weight=moe_loss_weight,
        moe_zloss_weight=moe_zloss_weight,
        backend=backend,
        device=device,
    )


def _check_grouped_mm(d_model: int, ffn_hidden_size: int) -> None:
    problem = None
    if GROUPED_MM is None:
        problem = f'torch {torch.__version__} has no grouped products.'
    elif not is_aligned(d_model, ffn_hidden_size):
        problem = (
            f'it takes sizes that are multiples of {ROW_MULTIPLE}, and this '
            f'layer has d_model={d_model} and ffn_hidden_size='
            f'{ffn_hidden_size}.'
        )
    if problem:
        raise ConfigError(
            'model.ffn_config.backend',
            'grouped_mm',
            problem,
            'set it to auto.',
        )


def _activation(
    ffn_act_fn: Optional[Mapping[str, Any]],
) -> Callable[[torch.Tensor], torch.Tensor]:
    is_named = isinstance(ffn_act_fn, Mapping) and isinstance(
        ffn_act_fn.get('name'),
        str,
    )
    accepted = 'null, or a mapping such as {name: silu}'
    _check('ffn_act_fn', ffn_act_fn, ffn_act_fn is None or is_named, accepted)
    try:
        function = _resolve_ffn_act_fn(ffn_act_fn or _GELU)
        function(torch.zeros(1))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            'model.ffn_config.ffn_act_fn',
            ffn_act_fn,
            f'torch.nn.functional has none of this name and these arguments '
            f'({error}).',
            f'set it to {accepted}.',
        ) from error
    return function


def _resolve_ffn_act_fn(
    ffn_act_fn: Mapping[str, Any],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """As Foundry's, which is loaded only for what torch has not."""
    arguments = dict(ffn_act_fn)
    function = getattr(nn.functional, arguments.pop('name'), None)
    if function is not None:
        return partial(function, **arguments)
    from llmfoundry.models.layers.ffn import resolve_ffn_act_fn
    return resolve_ffn_act_fn(dict(ffn_act_fn))


def _check(key: str, value: Any, ok: bool, accepted: str) -> None:
    if not ok:
        raise ConfigError(
            f'model.ffn_config.{key}',
            value,
            'upcycled_dmoe cannot use it.',
            f'set it to {accepted}.',
        )
