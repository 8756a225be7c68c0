"""The flat train YAML that the runs of one phase are made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import Duration, parse_duration
from foundry_upcycle.planning.flops import MAX_SIZE, ModelShape
from foundry_upcycle.planning.shrunk import shrunk_model
from foundry_upcycle.study.config import Phase
from foundry_upcycle.study.foundry_yaml import (
    merged,
    own_variables,
    select,
    select_any,
    unresolved,
)
from foundry_upcycle.study.phase_checks import TEACHER_KEY, check_phase

__all__ = ['BaseYaml', 'require_same_model']

# What is a mapping, where it is there.
_SECTIONS = (
    'algorithms',
    'algorithms.upcycle_distill',
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
        source: Of an arm whose mixture this one starts from, shrunk: that
            one's YAML. ``config`` and ``shape`` are then of what it shrinks to.
    """

    key: str
    phase: Phase
    config: DictConfig
    shape: ModelShape
    seq_len: int
    tokens_per_step: int
    duration: Duration
    variables: frozenset[str]
    source: Optional['BaseYaml'] = None

    @classmethod
    def read(
        cls,
        key: str,
        phase: Phase,
        variables: Mapping[str, Any],
        source: Optional['BaseYaml'] = None,
    ) -> 'BaseYaml':
        """Reads the YAML.

        Args:
            key: Of the phase in the study YAML.
            phase: Where the YAML lies, and the changes.
            variables: Replace those of the same name.
            source: See the class.

        Raises:
            ConfigError: It is not a train YAML of an MPT, its recipe is not
                known, it would log no training loss, or can't train what
                ``source`` shrinks to.
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
        if source is not None:
            _set_shrunk_model(key, phase, model, source)
        duration = select(phase.yaml, config, 'max_duration', (str, int))
        check_phase(key, phase, config, seq_len)
        return cls(
            key=key,
            phase=phase,
            config=config,
            shape=_shape(phase.yaml, model),
            seq_len=seq_len,
            tokens_per_step=batch_size * seq_len,
            duration=_duration(phase.yaml, duration),
            variables=own_variables(phase.yaml),
            source=source,
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
    def is_continued(self) -> bool:
        """Whether a run goes on with the dense model itself."""
        return not self.is_upcycling and self.source is None

    @property
    def teacher(self) -> Optional[ModelShape]:
        """The mixture that a run is distilled from; None: it is not."""
        distills = select_any(self.path, self.config, TEACHER_KEY) is not None
        return self.source.shape.evaluated if self.source and distills else None

    @property
    def saves_sharded(self) -> bool:
        """Whether Composer saves, and loads, folders of shards.

        What the YAML says alone decides, as Foundry does.
        """
        fsdp = select_any(self.path, self.config, 'fsdp_config') or {}
        return fsdp.get('state_dict_type') == 'sharded'

    @property
    def flops_per_token(self) -> int:
        """Of training, with a teacher's forward pass."""
        flops = self.shape.training_flops_per_token(self.seq_len)
        if self.teacher is not None:
            flops += self.teacher.forward_flops_per_token(self.seq_len)
        return flops

    @property
    def shrinking_flops(self) -> int:
        """Of the calibration that shrinking takes, at the most.

        That is a forward pass in which every expert's output is computed twice.
        """
        start = self.phase.shrunk
        if self.source is None or start is None or start.texts is None:
            return 0
        shape = self.source.shape.evaluated
        return 2 * start.tokens * shape.forward_flops_per_token(self.seq_len)

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
    shared = [
        name for name in _SAME_SHAPE
        # That of a shrunk one follows from its source's.
        if arm.source is None or name != 'n_expert_params'
    ]
    pairs = {
        'max_seq_len': (base.seq_len, arm.seq_len),
        **{
            f'model: {name}': (
                getattr(base.shape, name), getattr(arm.shape, name)
            )
            for name in shared
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


def _set_shrunk_model(
    key: str,
    phase: Phase,
    model: DictConfig,
    source: 'BaseYaml',
) -> None:
    """Makes of an arm's model what another arm's shrinks to, FFNs alone."""
    assert phase.shrunk is not None  # For pyright.
    overrides: Any = phase.overrides.get('model')
    try:
        shrunk = shrunk_model(source.resolved('model'), phase.shrunk.config)
    except ConfigError as error:
        error.args = (f'{phase.shrunk.key}: {error}', )
        raise
    for name in ('name', 'ffn_config'):
        if isinstance(overrides, dict) and name in overrides:
            raise ConfigError(
                f'{key}.overrides.model.{name}',
                overrides[name],
                f'it follows from what {phase.shrunk.arm} shrinks to.',
                'remove it.',
            )
        model[name] = shrunk[name]
