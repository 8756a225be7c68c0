"""What a user may set, validated; imports no torch."""

import sys
from dataclasses import dataclass, field
from typing import Any, Literal, Mapping, Optional, Sequence, TypeGuard

from foundry_upcycle.errors import ConfigError

__all__ = [
    'MOE_FFN_TYPES',
    'DenseKind',
    'ExpertCriterion',
    'FileFormat',
    'ShrinkingConfig',
    'UpcyclingConfig',
    'is_number',
    'is_whole',
    'partial_moe_layers',
    'resolve_ffn_hidden_size',
]

# Mixtures of experts: ``model.ffn_config.ffn_type``.
MOE_FFN_TYPES = ('upcycled_dmoe', 'torch_dmoe', 'mb_dmoe')

# What an offline conversion writes.
FileFormat = Literal['pt', 'dcp', 'safetensors']
# By what experts are chosen, and what a dense layer is made of, when a mixture
# is shrunk.
ExpertCriterion = Literal['load', 'norm', 'merge']
DenseKind = Literal['mean', 'weighted', 'concat']


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is an int; True is one to Python, and none here."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a float, or an int that a float can hold; True is none."""
    return isinstance(
        value, float
    ) or (is_whole(value) and abs(value) <= sys.float_info.max)


def partial_moe_layers(
    layers: Any,
    n_layers: int,
) -> Optional[tuple[int, ...]]:
    """The blocks that are mixtures of experts, where not all of them are.

    Args:
        layers: ``model.ffn_config.moe_layers``: indices of blocks, from 0;
            None for all.
        n_layers: Number of blocks.

    Returns:
        The indices in ascending order; None where all blocks are mixtures.

    Raises:
        ConfigError: They are not different indices of blocks, or none.
    """
    if layers is None:
        return None
    # A ListConfig is a sequence as well.
    is_list = isinstance(layers, Sequence) and not isinstance(layers, str)
    if not is_list or not all(type(layer) is int for layer in layers):
        problem = 'it is not a list of whole numbers.'
    elif not layers:
        problem = 'no block would be a mixture of experts.'
    elif len(set(layers)) != len(layers):
        problem = 'a block is named twice.'
    elif not (0 <= min(layers) and max(layers) < n_layers):
        problem = f'the model has blocks 0 to {n_layers - 1}.'
    else:
        return None if len(layers) == n_layers else tuple(sorted(layers))
    raise ConfigError(
        'model.ffn_config.moe_layers',
        layers,
        problem,
        'list the blocks that are to be mixtures, counted from 0, such as '
        '[1, 3, 5]; null for all.',
    )


def resolve_ffn_hidden_size(
    d_model: int,
    expansion_ratio: int | float,
    ffn_hidden_size: Optional[int] = None,
) -> int:
    """Hidden size F of a feed-forward layer, as LLM Foundry has it.

    Raises:
        ConfigError: It is not given, and ``d_model * expansion_ratio`` is no
            whole number.
    """
    if ffn_hidden_size is not None:
        return ffn_hidden_size
    if int(d_model * expansion_ratio) != d_model * expansion_ratio:
        raise ConfigError(
            'model.expansion_ratio',
            expansion_ratio,
            f'times d_model={d_model} it is not a whole number.',
            'set ffn_config.ffn_hidden_size.',
        )
    return int(d_model * expansion_ratio)


@dataclass(frozen=True)
class UpcyclingConfig:
    """How a dense checkpoint becomes a mixture of experts.

    Attributes:
        source_path: The dense checkpoint: a Composer ``.pt`` file, a sharded
            (DCP) folder or a Hugging Face folder with safetensors, local or
            any URI that Composer's ``load_path`` takes. ``{rank}`` is
            replaced by 0, as Composer does.
        recipe: ``name`` of a recipe and its settings.
        router_init_std: Standard deviation of the routers' initial weights.
            Logits start about sqrt(d_model) times as wide: 0.02 tells experts
            apart in a model of width 1,024 or more, in a narrow one they
            stay alike for long (``yamls/quickstart_upcycle.yaml``).
        seed: Seeds whatever is drawn; the result does not depend on the
            number of ranks.
    """
    source_path: str
    recipe: Mapping[str, Any] = field(default_factory=lambda: {'name': 'copy'})
    router_init_std: float = 0.02
    seed: int = 17

    def __post_init__(self) -> None:
        prefix = 'callbacks.sparse_upcycling'
        if not isinstance(self.source_path, str) or not self.source_path:
            raise ConfigError(
                f'{prefix}.source_path',
                self.source_path,
                'it names no checkpoint.',
                'set it to a dense checkpoint: a Composer .pt file or sharded '
                'folder, a Hugging Face folder, or the URI of one.',
            )
        if not is_whole(self.seed):
            raise ConfigError(
                f'{prefix}.seed',
                self.seed,
                'it is not a whole number.',
                'set it to one, such as 17.',
            )
        if not isinstance(self.recipe, Mapping) or 'name' not in self.recipe:
            raise ConfigError(
                f'{prefix}.recipe',
                self.recipe,
                'it has no name.',
                'write recipe: {name: copy}.',
            )
        std = self.router_init_std
        # Of float32, as routers may be: no zeros, no infinities.
        if not is_number(std) or not 1e-30 < std < 1e30:
            raise ConfigError(
                f'{prefix}.router_init_std',
                self.router_init_std,
                'it is not a standard deviation; a router of zeros sends every '
                'token to the same experts.',
                'set it above 0; 0.02 is the usual value.',
            )


@dataclass(frozen=True)
class ShrinkingConfig:
    """What a mixture of experts shrinks to.

    Attributes:
        experts: How many are left of each layer of a mixture; None: it becomes
            a dense model.
        dense: What a dense layer is: the ``mean`` of the experts, their mean
            ``weighted`` by load, or experts side by side, ``concat``.
        keep: How many of them; None: all.
        by: Which ``experts`` or ``keep``: those of most ``load`` or of largest
            mean router-weighted output ``norm``, or the means of as many groups
            of similar ones (``merge``).
        has_calibration: Whether loads and norms are known.

    Raises:
        ConfigError: They contradict one another.
    """
    experts: Optional[int] = None
    dense: Optional[DenseKind] = None
    keep: Optional[int] = None
    by: Optional[ExpertCriterion] = None
    has_calibration: bool = False

    def __post_init__(self) -> None:
        if (self.experts is None) == (self.dense is None):
            raise ConfigError(
                '--experts',
                self.experts,
                f'with --dense {self.dense} it is not said what the mixture '
                'becomes.',
                'give one of them: --experts N for fewer experts, --dense for '
                'a dense model.',
            )
        if self.dense != 'concat' and self.keep is not None:
            self._refuse('--keep', self.keep, 'it is of --dense concat.')
        chooses = self.experts is not None or self.keep is not None
        if chooses and self.by is None:
            raise ConfigError(
                '--by',
                None,
                'it is not said which experts are kept.',
                'choose load, norm (both with --calibration) or merge.',
            )
        if self.by is not None and not chooses:
            self._refuse('--by', self.by, 'all experts are taken.')
        needs = self.by if self.by in ('load', 'norm') else None
        needs = 'weighted' if self.dense == 'weighted' else needs
        if needs and not self.has_calibration:
            raise ConfigError(
                '--calibration',
                None,
                f'{needs} is of experts at work, on texts.',
                'run foundry-upcycle calibrate, and name its output.',
            )
        if self.has_calibration and self.dense == 'mean':
            self._refuse('--calibration', 'a file', 'the mean needs none.')

    def n_left(self, n_experts: int, top_k: int) -> int:
        """Experts that are left of a layer, side by side where it is dense.

        Args:
            n_experts: That the mixture has in each layer.
            top_k: Of them a token goes to.

        Raises:
            ConfigError: There are not so many, or too few would be left.
        """
        if self.experts is not None:
            _check_number('--experts', self.experts, top_k, n_experts)
            return self.experts
        if self.dense != 'concat':
            return 1
        n = n_experts if self.keep is None else self.keep
        _check_number('--keep', n, 1, n_experts)
        return n

    def _refuse(self, key: str, value: Any, problem: str) -> None:
        raise ConfigError(key, value, problem, 'leave it out.')


def _check_number(key: str, n: int, least: int, most: int) -> None:
    if n > most:
        raise ConfigError(
            key,
            n,
            f'the mixture has {most} experts in each layer.',
            f'keep at most {most}.',
        )
    if n < least:
        raise ConfigError(
            key,
            n,
            f'a token goes to {least} experts of a layer (moe_top_k).'
            if least > 1 else 'nothing would be left.',
            f'keep at least {least}' +
            (', or make a dense model (--dense).' if least > 1 else '.'),
        )
