"""The one table of names: dense MPT feed-forward weights and expert weights."""

import re
from typing import Iterable, Mapping, NamedTuple, Optional, TypeVar

from foundry_upcycle.errors import CheckpointError

__all__ = [
    'EXPERT_WEIGHTS',
    'ExpertName',
    'clean_name',
    'clean_names',
    'dense_mlp_type',
    'expert_name',
    'is_mixture',
    'is_moe_name',
    'parse_expert_name',
    'parse_router_name',
]

# Expert weight -> (dense projection, stored transposed), by expert MLP type.
# MPTGLU computes down(act(gate(x)) * up(x)); MPTMLP down(act(up(x))).
EXPERT_WEIGHTS: dict[str, dict[str, tuple[str, bool]]] = {
    'glu': {
        'w1': ('gate_proj', False),
        'v1': ('up_proj', False),
        'w2': ('down_proj', True),
    },
    'mlp': {
        'w1': ('up_proj', False),
        'w2': ('down_proj', True),
    },
}

_EXPERT = re.compile(r'(.*\.blocks\.(\d+)\.ffn)\.experts\.mlp\.(w1|v1|w2)')
_DENSE = re.compile(r'(.*\.blocks\.(\d+)\.ffn)\.(\w+_proj)\.weight')
_ROUTER = re.compile(r'.*\.blocks\.(\d+)\.ffn\.router\.layer\.weight')

# Wrappers that put themselves into parameter names.
_WRAPPERS = (
    '_checkpoint_wrapped_module.',
    '_fsdp_wrapped_module.',
    '_orig_mod.',
)

_T = TypeVar('_T')


class ExpertName(NamedTuple):
    """The name of a stack of experts' weights, parsed.

    Attributes:
        ffn: Name of the feed-forward layer, up to and with ``ffn``.
        layer: Block index.
        weight: ``w1``, ``v1`` or ``w2``.
    """
    ffn: str
    layer: int
    weight: str

    @property
    def name(self) -> str:
        return f'{self.ffn}.experts.mlp.{self.weight}'

    @property
    def router_name(self) -> str:
        """Name of the weight that routes to it."""
        return f'{self.ffn}.router.layer.weight'

    def dense_name(self, mlp_type: str) -> str:
        """Name of the dense weight it comes from."""
        projection, _ = EXPERT_WEIGHTS[mlp_type][self.weight]
        return f'{self.ffn}.{projection}.weight'

    def is_transposed(self, mlp_type: str) -> bool:
        """Whether the dense weight is stored as (D, F)."""
        return EXPERT_WEIGHTS[mlp_type][self.weight][1]


def parse_expert_name(name: str) -> Optional[ExpertName]:
    """Parses the name of an expert weight; None for any other name."""
    match = _EXPERT.fullmatch(name)
    return ExpertName(match[1], int(match[2]), match[3]) if match else None


def expert_name(dense_name: str, mlp_type: str) -> Optional[ExpertName]:
    """What becomes of a dense weight; None if it is not an FFN's projection."""
    match = _DENSE.fullmatch(dense_name)
    if match is None:
        return None
    for weight, (projection, _) in EXPERT_WEIGHTS[mlp_type].items():
        if projection == match[3]:
            return ExpertName(match[1], int(match[2]), weight)
    return None


def dense_mlp_type(names: Iterable[str]) -> str:
    """``glu`` or ``mlp``: which kind of experts dense layers become."""
    return 'glu' if any('.ffn.gate_proj.' in name for name in names) else 'mlp'


def parse_router_name(name: str) -> Optional[int]:
    """Block index of a router's weight; None for any other name."""
    match = _ROUTER.fullmatch(name)
    return int(match[1]) if match else None


def is_moe_name(name: str) -> bool:
    """Whether only a mixture of experts has a tensor of this name."""
    return (
        parse_expert_name(name) is not None
        or parse_router_name(name) is not None
    )


def is_mixture(names: Iterable[str]) -> bool:
    """Whether tensors of these names are those of a mixture of experts."""
    return any(is_moe_name(name) for name in names)


def clean_name(name: str) -> str:
    """``name`` without what DDP, FSDP and other wrappers add to it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, '')
    return name.removeprefix('module.')


def clean_names(path: str, tensors: Mapping[str, _T]) -> dict[str, _T]:
    """What a checkpoint stores, by its plain names.

    Raises:
        CheckpointError: There is nothing, a name is no text, or two are one
            plain name.
    """
    cleaned: dict[str, _T] = {}
    for name, tensor in tensors.items():
        plain = clean_name(name) if isinstance(name, str) else None
        if plain is None or plain in cleaned:
            raise CheckpointError(
                path,
                f'{name!r} is no name of a tensor.'
                if plain is None else f'two of its tensors are {plain}.',
                'save the checkpoint again.',
            )
        cleaned[plain] = tensor
    if not cleaned:
        raise CheckpointError(
            path,
            'it lists no state.model tensors, so Composer did not write it.',
            'set source_path to a Composer checkpoint.',
        )
    return cleaned
