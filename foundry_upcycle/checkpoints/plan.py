"""From two lists of tensors to what must be done, or why it can't be.

A plan is total on both sides: every target tensor is written once, every
source tensor is used, and all shapes agree before a byte is written.
"""

from dataclasses import dataclass
from typing import Mapping, Optional

from foundry_upcycle.checkpoints.base import (
    FLOAT_DTYPES,
    Checkpoint,
    TensorInfo,
)
from foundry_upcycle.checkpoints.names import (
    EXPERT_WEIGHTS,
    is_mixture,
    is_moe_name,
    parse_expert_name,
    parse_router_name,
)
from foundry_upcycle.errors import CheckpointError

__all__ = [
    'CarriedTensor',
    'ExpertTensor',
    'Plan',
    'RouterTensor',
    'make_plan',
    'refuse_mixture',
]

_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class CarriedTensor:
    """A tensor carried over unchanged; it has one name on both sides."""
    target: str


@dataclass(frozen=True)
class ExpertTensor:
    """A stack of experts' weights, made from one dense weight.

    Attributes:
        target: Name of the (E * F, D) weight.
        source: Name of the dense weight.
        transpose: Whether the source is stored as (D, F).
        layer: Block index.
        weight: ``w1``, ``v1`` or ``w2``.
        ffn_hidden_size: Rows F of one expert.
    """
    target: str
    source: str
    transpose: bool
    layer: int
    weight: str
    ffn_hidden_size: int


@dataclass(frozen=True)
class RouterTensor:
    """A router's weight, (E, D), which no dense model has."""
    target: str
    layer: int


Plan = list[CarriedTensor | ExpertTensor | RouterTensor]


def make_plan(reader: Checkpoint, targets: _Shapes) -> Plan:
    """Maps every target tensor to where it comes from.

    Args:
        reader: The dense checkpoint.
        targets: Full shapes of the model's parameters by name.

    Raises:
        CheckpointError: The source is not a dense model of which the target
            is an upcycled one; the message names the tensor.
    """
    _check_kinds(reader, targets)
    mlp_type = 'glu' if any(n.endswith('.mlp.v1') for n in targets) else 'mlp'
    plan = [_plan_tensor(reader, name, targets, mlp_type) for name in targets]
    used = {_source_name(item) for item in plan} | _zero_biases(reader, targets)
    unused = sorted(set(reader.tensors) - used)
    if unused:
        raise CheckpointError(
            reader.path,
            f'{_some(unused)} would be lost: the model has no place for it.',
            'make the model section equal that of the dense run (n_layers, '
            'tie_word_embeddings, biases, learned_pos_emb), apart from '
            'ffn_config.',
        )
    return plan


def refuse_mixture(reader: Checkpoint) -> None:
    """Refuses a checkpoint that is no dense one.

    Raises:
        CheckpointError: It holds experts.
    """
    experts = [name for name in reader.tensors if is_moe_name(name)]
    if experts:
        raise CheckpointError(
            reader.path,
            f'it is a mixture of experts already (it holds {experts[0]}).',
            'start from a dense checkpoint; to go on training this one, remove '
            'sparse_upcycling and set load_path.',
        )


def _check_kinds(reader: Checkpoint, targets: _Shapes) -> None:
    if not is_mixture(targets):
        raise CheckpointError(
            reader.path,
            'it is to fill a model without experts.',
            'set model.name: upcycled_mpt and model.ffn_config.ffn_type: '
            'upcycled_dmoe.',
        )
    refuse_mixture(reader)
    for name, info in reader.tensors.items():
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                reader.path,
                f'{name} has dtype {info.dtype}.',
                'start from weights in float32, bfloat16 or float16.',
            )


def _zero_biases(reader: Checkpoint, targets: _Shapes) -> set[str]:
    """Biases of dense FFNs that experts can do without.

    Raises:
        CheckpointError: Experts, which hold none, can't do without one.
    """
    biases = [
        name for name in reader.tensors
        if '.ffn.' in name and name.endswith('.bias') and name not in targets
    ]
    needed = [
        name for name in biases
        if reader.read(name, 0, 0, reader.tensors[name].shape[0]).any()
    ]
    if needed:
        raise CheckpointError(
            reader.path,
            f'experts hold no biases, and it has {_some(needed)} that are not '
            'zero.',
            'train the dense model with no_bias: true.',
        )
    return {*biases}


def _plan_tensor(
    reader: Checkpoint,
    target: str,
    targets: _Shapes,
    mlp_type: str,
) -> CarriedTensor | ExpertTensor | RouterTensor:
    shape = targets[target]
    layer = parse_router_name(target)
    if layer is not None:
        return RouterTensor(target, layer)
    expert = parse_expert_name(target)
    if expert is None:
        _check_shape(reader, target, shape)
        return CarriedTensor(target)
    source = expert.dense_name(mlp_type)
    _, transpose = EXPERT_WEIGHTS[mlp_type][expert.weight]
    hidden = _dense_shape(reader, source)[1 if transpose else 0]
    _check_shape(
        reader,
        source,
        (shape[1], hidden) if transpose else (hidden, shape[1]),
    )
    n_experts = targets[expert.router_name][0]
    if shape[0] != n_experts * hidden:
        raise CheckpointError(
            reader.path,
            f'{source} has {hidden} hidden channels; {n_experts} experts of '
            f'that size need {n_experts * hidden} rows in {target}, which has '
            f'{shape[0]}.',
            f'set model.ffn_config.ffn_hidden_size: {hidden}.',
        )
    return ExpertTensor(
        target,
        source,
        transpose,
        expert.layer,
        expert.weight,
        hidden,
    )


def _dense_shape(reader: Checkpoint, name: str) -> tuple[int, ...]:
    info: Optional[TensorInfo] = reader.tensors.get(name)
    if info is None:
        raise CheckpointError(
            reader.path,
            f'it has no {name}.',
            'make the model section equal that of the dense run apart from '
            'ffn_config; model.ffn_config.mlp_type is glu for a dense mptglu '
            'and mlp for a dense mptmlp.',
        )
    return info.shape


def _check_shape(
    reader: Checkpoint,
    name: str,
    shape: tuple[int, ...],
) -> None:
    found = _dense_shape(reader, name)
    if found != tuple(shape):
        raise CheckpointError(
            reader.path,
            f'{name} has shape {found}, the model needs {tuple(shape)}.',
            'make the model section (d_model, n_heads, vocab_size, '
            'ffn_hidden_size, ...) equal that of the dense run.',
        )


def _source_name(item: CarriedTensor | ExpertTensor | RouterTensor) -> str:
    return item.source if isinstance(item, ExpertTensor) else item.target


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 1} more' if len(names) > 1 else ''
    return f'{names[0]}{more}'
