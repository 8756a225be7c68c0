"""What the paper measured, as published (``paper.yaml`` says how it was read)."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Mapping, Optional

import yaml

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import parse_duration
from foundry_upcycle.study.config import ModelGrid

__all__ = ['PaperDuration', 'PaperPoint', 'load_paper', 'paper_durations']

_FILE = Path(__file__).with_name('paper.yaml')
_ARMS = ('cpt', 'upcycled')
# Of tokens, which the paper rounds to two digits.
_TOLERANCE = 0.03


@dataclass(frozen=True)
class PaperPoint:
    """One run's second phase.

    Args:
        tokens: Trained on in it.
        final_loss: Training cross entropy of its last 50 steps, nats a token.
        core_average: Of the paper's tasks; 0 is guessing, 1 all right.
    """

    tokens: float
    final_loss: float
    core_average: float


@dataclass(frozen=True)
class PaperDuration:
    """One dense model of the paper, and the runs that went on from it.

    Args:
        pretraining_tokens: Of the dense model.
        dense_start: Its Core Average.
        arms: ``cpt`` or ``upcycled`` -> fraction of pretraining FLOPs, which
            ascend -> what came of it.
    """

    pretraining_tokens: float
    dense_start: float
    arms: Mapping[str, Mapping[float, PaperPoint]]


@cache
def load_paper() -> Mapping[str, Mapping[str, PaperDuration]]:
    """All of it: model (436M, 1.4B) -> duration (medium, ...) -> its runs."""
    content = yaml.safe_load(_FILE.read_text())
    return {
        model: {
            name:
            PaperDuration(
                duration['pretraining_tokens'],
                duration['dense_start'],
                {
                    arm: {
                        fraction: PaperPoint(**point)
                        for fraction, point in duration[arm].items()
                    }
                    for arm in _ARMS
                },
            )
            for name, duration in durations.items()
        }
        for model, durations in content.items()
    }


def paper_durations(model: ModelGrid) -> Mapping[str, PaperDuration]:
    """What to draw behind a model's points, by the names of its durations.

    A duration is the paper's where it has the paper's name and, within 3 %, as
    many tokens; one in steps or FLOPs is not.

    Raises:
        ConfigError: The paper has no such model, or none with such budgets, or
            a duration is none.
    """
    if model.paper is None:
        return {}
    if model.unit != 'fraction':
        raise ConfigError(
            f'models.{model.name}.paper',
            model.paper,
            "the paper's points are at fractions of the FLOPs of pretraining, "
            'and the model has budgets.',
            'write fractions, or remove it.',
        )
    paper = load_paper()
    if model.paper not in paper:
        raise ConfigError(
            f'models.{model.name}.paper',
            model.paper,
            'the paper has no such model.',
            f"write one of {', '.join(paper)}, or remove it.",
        )
    return {
        name: duration
        for name, duration in paper[model.paper].items()
        if name in model.durations and _is_as_long(model, name, duration)
    }


def _is_as_long(model: ModelGrid, name: str, paper: PaperDuration) -> bool:
    tokens = _tokens(model, name)
    if tokens is None:
        return False
    return abs(tokens / paper.pretraining_tokens - 1) <= _TOLERANCE


def _tokens(model: ModelGrid, name: str) -> Optional[float]:
    start = model.durations[name]
    if not isinstance(start, str):
        return start.tokens
    duration = parse_duration(f'models.{model.name}.durations.{name}', start)
    return duration.value if duration.unit == 'tok' else None
