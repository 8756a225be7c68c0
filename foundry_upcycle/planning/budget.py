"""What a training YAML costs: parameters, FLOPs, tokens and memory."""

import math
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Mapping, NoReturn, Optional, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundry_upcycle.config import is_whole
from foundry_upcycle.documents import DocumentError, read_config
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import parse_duration
from foundry_upcycle.planning.flops import MAX_SIZE, ModelShape

__all__ = ['TrainingBudget', 'read_training_budget', 'read_training_shape']

_FLOAT32_BYTES = 4
_T = TypeVar('_T')
# Says what a checkpoint is a model of.
_ShapeOf = Callable[[str], ModelShape]


@dataclass(frozen=True)
class TrainingBudget:
    """What the run of a training YAML computes and holds.

    Attributes:
        n_total_params: All parameters.
        n_active_params: Parameters that a token meets; see ``ModelShape``.
        forward_flops_per_token: At the YAML's ``max_seq_len``.
        training_flops_per_token: Likewise, forward and backward, and forward
            of a teacher that it is distilled from.
        tokens_per_step: Tokens of one optimizer step, over all ranks.
        n_steps: Optimizer steps until ``max_duration``, the last one whole;
            None where it is in epochs, whose length the data decide.
    """

    n_total_params: int
    n_active_params: int
    forward_flops_per_token: int
    training_flops_per_token: int
    tokens_per_step: int
    n_steps: Optional[int]

    @property
    def n_tokens(self) -> Optional[int]:
        """Tokens until ``max_duration``, those of the last step whole."""
        if self.n_steps is None:
            return None
        return self.n_steps * self.tokens_per_step

    @property
    def n_flops(self) -> Optional[int]:
        """Training FLOPs until ``max_duration``."""
        if self.n_tokens is None:
            return None
        return self.n_tokens * self.training_flops_per_token

    @property
    def float32_bytes(self) -> int:
        """Bytes of one float32 number a parameter, over all ranks.

        The weights take this much, the gradients as much again, and so does
        Lion's momentum; FSDP divides each by the number of ranks. Left out:
        activations, copies in lower precision, what is gathered while a block
        runs.
        """
        return _FLOAT32_BYTES * self.n_total_params


def read_training_budget(
    path: str,
    shape_of: Optional[_ShapeOf] = None,
) -> TrainingBudget:
    """Reads what an LLM Foundry training YAML says of its cost.

    Only the values that count are resolved: others may be such as only
    Foundry, or the machine that trains, can resolve.

    Args:
        path: The YAML.
        shape_of: Says what a checkpoint is a model of, for YAMLs that distil
            from one; None: they are refused.

    Raises:
        ConfigError: There is no such YAML, or a key that counts is missing or
            can't be used.
    """
    return _read(path, lambda config: _budget(config, shape_of))


def read_training_shape(path: str) -> tuple[ModelShape, int]:
    """The model of a training YAML, and the tokens of a sequence.

    Raises:
        ConfigError: As of ``read_training_budget``.
    """

    def take(config: _Section) -> tuple[ModelShape, int]:
        return ModelShape.from_config(_model(config)), _seq_len(config)

    return _read(path, take)


def _read(path: str, take: Callable[['_Section'], _T]) -> _T:
    config = _load(path)
    try:
        return take(config)
    except ConfigError as error:
        # More than one YAML may be asked about.
        error.args = (f'{path}: {error}', )
        raise
    except OmegaConfBaseException as error:
        problem = str(error).splitlines()[0]
        raise ConfigError(
            error.full_key or 'YAML',
            path,
            f'its value cannot be resolved: {problem}.',
            'write the value into the YAML.',
        ) from error


class _Section(Mapping[str, Any]):
    """Settings that are resolved when they are asked for.

    ``DictConfig.get`` would do, but its errors do not name the key.
    """

    def __init__(self, config: DictConfig):
        self.config = config

    def __getitem__(self, key: str) -> Any:
        value = self.config[key]
        return _Section(value) if isinstance(value, DictConfig) else value

    def __iter__(self) -> Iterator[Any]:
        return iter(self.config)

    def __len__(self) -> int:
        return len(self.config)

    def __repr__(self) -> str:
        return repr(OmegaConf.to_container(self.config))


def _load(path: str) -> _Section:

    def refuse(problem: str) -> NoReturn:
        raise ConfigError('YAML', path, problem, 'name a training YAML.')

    try:
        config = read_config(path)
    except DocumentError as error:
        refuse(str(error))
    if not isinstance(config, DictConfig):
        refuse('it is not a mapping of settings.')
    return _Section(config)


def _model(config: _Section) -> _Section:
    model = config.get('model')
    if not isinstance(model, _Section):
        raise ConfigError(
            'model',
            model,
            'it is not a section of settings.',
            'name a training YAML of one MPT model.',
        )
    return model


def _seq_len(config: _Section) -> int:
    return _whole(config, 'max_seq_len', 'the tokens of a sequence')


def _teacher(config: _Section) -> Optional[str]:
    for key in ('algorithms', 'upcycle_distill'):
        config = config.get(key) or _Section(DictConfig({}))
    return config.get('teacher')


def _teacher_flops(
    config: _Section,
    seq_len: int,
    shape_of: Optional[_ShapeOf],
) -> int:
    """FLOPs a token of the teacher's forward pass; 0 without one."""
    teacher = _teacher(config)
    if teacher is None:
        return 0
    if shape_of is None:
        raise ConfigError(
            'algorithms.upcycle_distill.teacher',
            teacher,
            'what its forward passes cost is not counted here.',
            'ask for it with foundry-upcycle flops.',
        )
    return shape_of(teacher).forward_flops_per_token(seq_len)


def _budget(
    config: _Section,
    shape_of: Optional[_ShapeOf],
) -> TrainingBudget:
    model, seq_len = _model(config), _seq_len(config)
    sequences = _whole(
        config,
        'global_train_batch_size',
        'the sequences of a step, over all ranks',
    )
    shape = ModelShape.from_config(model)
    return TrainingBudget(
        n_total_params=shape.n_total_params,
        n_active_params=shape.n_active_params,
        forward_flops_per_token=shape.forward_flops_per_token(seq_len),
        training_flops_per_token=shape.training_flops_per_token(seq_len) +
        _teacher_flops(config, seq_len, shape_of),
        tokens_per_step=seq_len * sequences,
        n_steps=_n_steps(config.get('max_duration'), seq_len * sequences),
    )


def _whole(config: _Section, key: str, meaning: str) -> int:
    value = config.get(key)
    if not (is_whole(value) and 1 <= value <= MAX_SIZE):
        raise ConfigError(
            key,
            value,
            f'it is not a whole number from 1 to {MAX_SIZE:,}.',
            f'set it to {meaning}.',
        )
    return value


def _n_steps(value: Any, tokens_per_step: int) -> Optional[int]:
    """Steps that Composer takes until ``max_duration``."""
    if is_whole(value):
        value = f'{value}ep'  # As Composer reads a bare number.
    duration = parse_duration('max_duration', value)
    is_known = duration.unit in ('tok', 'ba', 'ep')
    # As Composer asks of all but shares of a run.
    is_from_1 = duration.value >= 1 and duration.value.is_integer()
    if not (is_known and is_from_1):
        raise ConfigError(
            'max_duration',
            value,
            'it is not a whole number, from 1, of tokens, batches or epochs.',
            'write tokens or batches, such as 13e9tok or 300ba.',
        )
    if duration.unit == 'ep':
        return None
    # A step is never cut short.
    return math.ceil(duration.steps(tokens_per_step))
