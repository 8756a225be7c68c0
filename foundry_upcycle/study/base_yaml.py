"""The flat train YAML that the runs of one phase are made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import Duration, parse_duration
from foundry_upcycle.planning.flops import MAX_SIZE, ModelShape
from foundry_upcycle.study.config import Phase
from foundry_upcycle.study.foundry_yaml import (
    merged,
    own_variables,
    select,
    select_any,
    unresolved,
)

__all__ = ['BaseYaml', 'require_same_model']

# What is a mapping, where it is there.
_SECTIONS = (
    'variables',
    'callbacks',
    'callbacks.sparse_upcycling',
    'fsdp_config',
    'loggers',
    'optimizer',
    'scheduler',
    'train_loader',
    'train_loader.dataset',
)
# What a mixture of experts has in common with the model that it is made of.
_SAME_SHAPE = (
    'd_model',
    'n_layers',
    'vocab_size',
    'tie_word_embeddings',
    'n_position_params',
    'n_norm_params',
    'n_attn_params',
    'n_expert_params',
)


@dataclass(frozen=True)
class BaseYaml:
    """A phase's YAML, with what the study changes in it.

    Args:
        key: Of the phase in the study YAML.
        phase: Where the YAML lies, and the changes.
        config: Its content, unresolved.
        shape: The model.
        seq_len: Tokens of a sequence.
        tokens_per_step: Of all ranks.
        duration: Its ``max_duration``.
        variables: Names below its ``variables``, which a study may replace.
    """

    key: str
    phase: Phase
    config: DictConfig
    shape: ModelShape
    seq_len: int
    tokens_per_step: int
    duration: Duration
    variables: frozenset[str]

    @classmethod
    def read(
        cls,
        key: str,
        phase: Phase,
        variables: Mapping[str, Any],
    ) -> 'BaseYaml':
        """Reads the YAML.

        Args:
            key: Of the phase in the study YAML.
            phase: Where the YAML lies, and the changes.
            variables: Replace those of the same name.

        Raises:
            ConfigError: It is no train YAML of an MPT, its recipe is not
                known, or it would log no training loss.
        """
        config = merged(
            f'{key}.yaml',
            phase.yaml,
            variables,
            phase.overrides,
            'a train YAML',
            _SECTIONS,
        )
        seq_len = select(phase.yaml, config, 'max_seq_len', int)
        batch_size = select(phase.yaml, config, 'global_train_batch_size', int)
        for name, size in (
            ('max_seq_len', seq_len),
            ('global_train_batch_size', batch_size),
        ):
            if not 1 <= size <= MAX_SIZE:
                raise ConfigError(
                    f'{phase.yaml}: {name}',
                    size,
                    'a step would have no tokens, or too many.',
                    f'set it to a number from 1 to {MAX_SIZE:,}.',
                )
        select(phase.yaml, config, 'tokenizer', DictConfig)
        model = select(phase.yaml, config, 'model', DictConfig)
        duration = select(phase.yaml, config, 'max_duration', (str, int))
        _check_optimizer(key, phase, config)
        _check_data(phase.yaml, config, seq_len)
        _check_schedule(phase.yaml, config)
        _check_saving(phase.yaml, config)
        _check_upcycling(phase.yaml, config, model)
        _check_metrics(phase.yaml, config, model)
        return cls(
            key=key,
            phase=phase,
            config=config,
            shape=_shape(phase.yaml, model),
            seq_len=seq_len,
            tokens_per_step=batch_size * seq_len,
            duration=_duration(phase.yaml, duration),
            variables=own_variables(phase.yaml),
        )

    @property
    def path(self) -> Path:
        return self.phase.yaml

    @property
    def is_upcycling(self) -> bool:
        """Whether a run starts by turning the dense model into experts."""
        return select_any(
            self.path,
            self.config,
            'callbacks.sparse_upcycling',
        ) is not None

    @property
    def saves_sharded(self) -> bool:
        """Whether Composer saves, and loads, folders of shards.

        What the YAML says alone decides, as Foundry does.
        """
        fsdp = select_any(self.path, self.config, 'fsdp_config') or {}
        return fsdp.get('state_dict_type') == 'sharded'

    @property
    def flops_per_token(self) -> int:
        return self.shape.training_flops_per_token(self.seq_len)

    @property
    def flops_per_step(self) -> int:
        return self.tokens_per_step * self.flops_per_token

    def resolved(self, section: str) -> Any:
        """A section of the YAML, with all its interpolations resolved.

        Raises:
            ConfigError: One leads nowhere.
        """
        try:
            return OmegaConf.to_container(self.config[section], resolve=True)
        except OmegaConfBaseException as error:
            key = error.full_key or section
            raise unresolved(self.path, key, error) from error

    def max_duration(self, n_steps: int) -> str:
        """So many steps in the unit of the YAML, which warm-up shares."""
        if self.duration.unit == 'tok':
            return f'{n_steps * self.tokens_per_step}tok'
        return f'{n_steps}ba'

    def require_warmup_shorter(
        self,
        key: str,
        value: Any,
        n_steps: int,
        says: str = 'it is ',
    ) -> None:
        """Checks that a run is longer than its warm-up.

        Args:
            key: What sets how long the run is.
            value: Its value.
            n_steps: How long it is.
            says: Begins the error.

        Raises:
            ConfigError: It is not, or the warm-up is in another unit.
        """
        warmup_key = f'{self.path}: scheduler.t_warmup'
        text = select_any(self.path, self.config, 'scheduler.t_warmup')
        if text is None:
            return
        warmup = parse_duration(warmup_key, text)
        if warmup.unit == 'dur':
            return
        if warmup.unit != self.duration.unit:
            raise ConfigError(
                warmup_key,
                text,
                f'max_duration is in {self.duration.unit}: Composer wants one '
                'unit.',
                f'write it in {self.duration.unit}, here or in overrides.',
            )
        if n_steps <= warmup.steps(self.tokens_per_step):
            tokens = n_steps * self.tokens_per_step
            raise ConfigError(
                key,
                value,
                f'{says}{n_steps:,} steps, {tokens:,} tokens, no more than '
                f'the warm-up of {text}.',
                f'raise it, or lower scheduler.t_warmup of {self.path}.',
            )


def require_same_model(base: BaseYaml, arm: BaseYaml) -> None:
    """Checks that an arm trains the dense model on, or experts made of it.

    Raises:
        ConfigError: Something is not as in the pretraining YAML.
    """
    pairs = {
        'max_seq_len': (base.seq_len, arm.seq_len),
        **{
            f'model: {name}': (
                getattr(base.shape, name), getattr(arm.shape, name)
            )
            for name in _SAME_SHAPE
        },
    }
    for name, (expected, found) in pairs.items():
        if found != expected:
            raise ConfigError(
                f'{arm.path}: {name}',
                found,
                f'in {base.path}, whose model it goes on with, it is '
                f'{expected!r}.',
                'make them the same, here or in overrides.',
            )


def _shape(path: Path, model: DictConfig) -> ModelShape:
    try:
        return ModelShape.from_config(model)
    except ConfigError as error:
        error.args = (f'{path}: {error}', )
        raise
    except OmegaConfBaseException as error:
        raise unresolved(path, error.full_key or 'model', error) from error


def _duration(path: Path, value: Any) -> Duration:
    key = f'{path}: max_duration'
    duration = parse_duration(key, value)
    if duration.unit not in ('tok', 'ba'):
        raise ConfigError(
            key,
            value,
            'a study counts tokens or steps.',
            'write it in tok or ba.',
        )
    return duration


def _check_optimizer(key: str, phase: Phase, config: Any) -> None:
    select(phase.yaml, config, 'optimizer.lr', (float, int))
    if not phase.learning_rates:
        return
    select(phase.yaml, config, 'optimizer.name', str)
    select(phase.yaml, config, 'optimizer.weight_decay', (float, int))
    if not config.optimizer.lr > 0:
        raise ConfigError(
            f'{phase.yaml}: optimizer.lr',
            config.optimizer.lr,
            f'weight decay is scaled from it to {key}.lr.',
            'set it above 0.',
        )


def _check_data(path: Path, config: Any, seq_len: int) -> None:
    key = 'train_loader.dataset.max_seq_len'
    length = select_any(path, config, key)
    if length not in (None, seq_len):
        raise ConfigError(
            f'{path}: {key}',
            length,
            f'the model trains on sequences of this length, and FLOPs are '
            f'counted of max_seq_len: {seq_len}.',
            'write ${max_seq_len}.',
        )


def _check_schedule(path: Path, config: Any) -> None:
    key = 'scheduler.t_max'
    text = select_any(path, config, key)
    if text is None:
        return
    if parse_duration(f'{path}: {key}', text).unit != 'dur':
        raise ConfigError(
            f'{path}: {key}',
            text,
            'runs of a study have lengths of their own.',
            'write it in dur, such as 1dur, or remove it.',
        )


# Keys that leave a run without what it is to go on from -> the values.
_NOTHING_SAVED: Mapping[str, Any] = {
    'only_hf_checkpoint': True,
    'save_num_checkpoints_to_keep': 0,
    'save_overwrite': True,
    'save_weights_only': True,
}


def _check_saving(path: Path, config: Any) -> None:
    for key, refused in _NOTHING_SAVED.items():
        value = select_any(path, config, key)
        if type(value) is type(refused) and value == refused:
            raise ConfigError(
                f'{path}: {key}',
                value,
                'runs go on from their last checkpoint, which this would not '
                'leave to them.',
                'remove it, here or in overrides.',
            )


def _check_upcycling(path: Path, config: Any, model: DictConfig) -> None:
    key = 'callbacks.sparse_upcycling'
    upcycling = select_any(path, config, key)
    is_mixture = model.get('name') == 'upcycled_mpt'
    if is_mixture != (upcycling is not None):
        raise ConfigError(
            f'{path}: model.name',
            model.get('name'),
            'the callback sparse_upcycling goes with upcycled_mpt, and with '
            'nothing else.',
            'add the callback, or remove it, or change the model.',
        )
    if upcycling is not None and 'recipe' in upcycling:
        select(path, config, f'{key}.recipe.name', str)
        # It imports torch.
        from foundry_upcycle.recipes import get_recipe
        get_recipe(upcycling.recipe)


def _check_metrics(path: Path, config: Any, model: DictConfig) -> None:
    key = 'model.use_train_metrics'
    value = select_any(path, config, key)
    if 'use_train_metrics' in model and not value:
        raise ConfigError(
            f'{path}: {key}',
            value,
            'a study reads the training loss.',
            'remove it, or set it to true.',
        )
