"""A checkpoint as a mixture of experts: its layers, and how many of what."""

import hashlib
from dataclasses import dataclass
from typing import Any, Iterator, Mapping

import torch

from foundry_upcycle.checkpoints.base import Checkpoint, require_tensor
from foundry_upcycle.checkpoints.names import (
    EXPERT_WEIGHTS,
    ExpertName,
    parse_router_name,
)
from foundry_upcycle.checkpoints.settings import require_mpt
from foundry_upcycle.config import is_whole
from foundry_upcycle.errors import CheckpointError, ConfigError
from foundry_upcycle.planning.top_k import read_top_k

__all__ = ['Mixture', 'weights_id']

_RENORMALISED = 'ffn_config.moe_normalize_expert_weights'
_FIX_LAYERS = (
    'name a checkpoint whose layers are those of its config, all with as many '
    'experts.'
)


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts whose layers are all of one kind.

    Attributes:
        source: The checkpoint.
        ffns: Block -> name of its mixture, up to and with ``ffn``.
        n_experts: Experts E of each layer.
        top_k: Experts K a token goes to; the most of them where K varied in
            training.
        hidden_size: Hidden size F of one expert.
        mlp_type: ``glu`` or ``mlp``.
    """
    source: Checkpoint
    ffns: dict[int, str]
    n_experts: int
    top_k: int
    hidden_size: int
    mlp_type: str

    @classmethod
    def of(cls, source: Checkpoint) -> 'Mixture':
        """Reads what it is from the config, and checks it by the tensors.

        Raises:
            CheckpointError: It is dense, carries no config, or its layers are
                not those of the config, or not all the same.
            ConfigError: Its combine weights do not sum to 1.
        """
        ffns = {
            layer: name.removesuffix('.router.layer.weight')
            for name in source.tensors
            if (layer := parse_router_name(name)) is not None
        }
        if not ffns:
            raise CheckpointError(
                source.path,
                'it is a dense model: it holds no experts.',
                'name a mixture of experts.',
            )
        config = require_mpt(source)
        _require_renormalised(source, config)
        some = next(iter(ffns.values()))
        is_glu = ExpertName(some, 0, 'v1').name in source.tensors
        mixture = cls(
            source,
            dict(sorted(ffns.items())),
            n_experts=_size(source, config, 'moe_num_experts'),
            top_k=_top_k(source, config),
            hidden_size=_size(source, config, 'ffn_hidden_size'),
            mlp_type='glu' if is_glu else 'mlp',
        )
        for name, shape in mixture._shapes(config['d_model']):
            require_tensor(source, name, shape, _FIX_LAYERS)
        return mixture

    def names(self, layer: int) -> list[ExpertName]:
        """Of the stacks of weights of a layer."""
        weights = EXPERT_WEIGHTS[self.mlp_type]
        return [ExpertName(self.ffns[layer], layer, w) for w in weights]

    def rows(
        self,
        name: ExpertName,
        expert: int,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """Rows of one expert, of its 0 to F; not to be written to."""
        first = expert * self.hidden_size
        return self.source.read(name.name, 0, first + start, first + stop)

    def router(self, layer: int) -> torch.Tensor:
        """A router's weight, (E, D); not to be written to."""
        name = self._router_name(layer)
        return self.source.read(name, 0, 0, self.n_experts)

    def _router_name(self, layer: int) -> str:
        return ExpertName(self.ffns[layer], layer, 'w1').router_name

    def _shapes(self, D: int) -> Iterator[tuple[str, tuple[int, int]]]:
        for layer in self.ffns:
            for name in self.names(layer):
                yield name.name, (self.n_experts * self.hidden_size, D)
            yield self._router_name(layer), (self.n_experts, D)


def weights_id(source: Checkpoint) -> str:
    """Tells weights from others, whatever the format that they are stored in.

    SHA-256 of every tensor's name and shape, and of its first, middle and last
    row: what training changes, without reading it all.
    """
    digest = hashlib.sha256()
    for name, (shape, _) in sorted(source.tensors.items()):
        digest.update(f'{name} {shape}\n'.encode())
        for row in sorted({0, shape[0] // 2, shape[0] - 1}):
            numbers = source.read(name, 0, row, row + 1).double().contiguous()
            digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _top_k(source: Checkpoint, config: dict[str, Any]) -> int:
    value = config.get('ffn_config.moe_top_k')
    if isinstance(value, Mapping):
        n_experts = _size(source, config, 'moe_num_experts')
        return read_top_k(value, n_experts).largest
    return _size(source, config, 'moe_top_k')


def _require_renormalised(source: Checkpoint, config: dict[str, Any]) -> None:
    order = config.get(_RENORMALISED)
    if order != 1:
        raise ConfigError(
            f'model.{_RENORMALISED}',
            order,
            f'in {source.path} the weights of the experts that a token goes to '
            'do not sum to 1: fewer experts would be weighted otherwise, and '
            'their mean would be too large.',
            'shrink a mixture that was trained with 1.',
        )


def _size(source: Checkpoint, config: dict[str, Any], key: str) -> int:
    value = config.get(f'ffn_config.{key}')
    if not is_whole(value) or value < 1:
        raise CheckpointError(
            source.path,
            f'its config says ffn_config.{key}={value!r}.',
            'save it again with Composer.',
        )
    return value
