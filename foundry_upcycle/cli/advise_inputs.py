"""What the options of ``advise`` name: models, runs, serving, numbers."""

import warnings
from pathlib import Path
from typing import Any, Optional, Sequence

from omegaconf import OmegaConf

from foundry_upcycle.documents import read_config
from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.planning.advice.arms import ARMS, Arms, fit_arms
from foundry_upcycle.planning.advice.costs import ServingSpeed, require_positive
from foundry_upcycle.planning.advice.model import (
    DenseModel,
    Mixture,
    model_of_numbers,
    model_of_shape,
)
from foundry_upcycle.planning.budget import (
    TrainingBudget,
    read_training_budget,
    read_training_shape,
)
from foundry_upcycle.planning.flops import ModelShape
from foundry_upcycle.study.points import (
    PAPER,
    PAPER_MIXTURE,
    Points,
    paper_points,
    study_points,
)
from foundry_upcycle.study.serving_speed import measured_speed, paper_speed

__all__ = ['fit', 'read_model', 'read_served', 'read_speed']

# Times the spread of the paper's points alone.
_MOST_APART = 1.5


def read_model(
    model: Optional[str],
    params: Optional[float],
    tokens: Optional[float],
    mixture: Mixture,
) -> DenseModel:
    """The dense model, of a YAML, a checkpoint or numbers.

    Raises:
        CheckpointError: The checkpoint can't be read.
        ConfigError: It is not said what the model is, or what it has seen.
    """
    if (model is None) == (params is None):
        raise ConfigError(
            'MODEL',
            model,
            'the model is named twice, by --params as well.'
            if model else 'no model is named.',
            'name a training YAML or a checkpoint, or give --params and '
            '--tokens.',
        )
    if model is not None and Path(model).suffix in ('.yaml', '.yml'):
        return _of_yaml(model, tokens, mixture)
    if tokens is None:
        raise ConfigError(
            '--tokens',
            None,
            'only a training YAML says how many the model was pretrained on.',
            'give it, such as 43.6e9.',
        )
    if model is not None:
        return _of_checkpoint(model, tokens, mixture)
    assert params is not None  # One of them is given.
    return model_of_numbers(params, tokens, mixture, paper_points())


def _of_yaml(
    path: str,
    tokens: Optional[float],
    mixture: Mixture,
) -> DenseModel:
    budget = read_training_budget(path)
    shape, seq_len = read_training_shape(path)
    return model_of_shape(
        Path(path).stem,
        shape,
        seq_len,
        _pretraining_tokens(path, budget) if tokens is None else tokens,
        mixture,
        budget.tokens_per_step,
    )


def _pretraining_tokens(path: str, budget: TrainingBudget) -> float:
    # Unresolved: it may be such as only the machine that trains can resolve.
    config: Any = OmegaConf.to_container(read_config(path), resolve=False)
    if budget.n_tokens is None:
        problem = 'is in epochs, whose length the data decide.'
    elif config.get('load_path'):
        problem = 'is not all that it has seen: it starts from a load_path.'
    else:
        return float(budget.n_tokens)
    raise ConfigError(
        '--tokens',
        None,
        f'max_duration of {path} {problem}',
        'give the tokens that the model was pretrained on.',
    )


def _of_checkpoint(path: str, tokens: float, mixture: Mixture) -> DenseModel:
    # They import torch and LLM Foundry.
    from foundry_upcycle.checkpoints.base import nest
    from foundry_upcycle.checkpoints.open import open_checkpoint
    from foundry_upcycle.checkpoints.settings import require_mpt
    checkpoint = open_checkpoint(path)
    seq_len = require_mpt(checkpoint)['max_seq_len']
    shape = ModelShape.from_config(nest(checkpoint.model_config))
    return model_of_shape(Path(path).name, shape, seq_len, tokens, mixture)


def read_speed(
    serving: Optional[str],
    size: Optional[str],
    model: DenseModel,
) -> ServingSpeed:
    """How fast the model is served, as measured or as the paper's are.

    Raises:
        ConfigError: The serving results can't be used, or lack the model.
    """
    mixture = model.mixture.n_experts, model.mixture.top_k
    if serving is None:
        if size is not None:
            raise ConfigError(
                '--serving-size',
                size,
                'there are no serving results to look for it in.',
                'give --serving as well.',
            )
        return paper_speed(model.n_params, *mixture)
    return measured_speed(serving, size, *mixture)


def fit(
    runs: Sequence[str],
    without_paper: bool,
    mixture: Mixture,
) -> tuple[Arms, str]:
    """The laws of both arms, and the study on whose scale losses are.

    Args:
        runs: Study YAMLs.
        without_paper: Whether to leave the paper's points out.
        mixture: Whose runs to take of them.

    Raises:
        ConfigError: A study can't be used, or there are too few runs.
    """
    if without_paper and not runs:
        raise ConfigError(
            '--without-paper',
            True,
            'nothing is left to fit the laws to.',
            'give --runs, or leave it out.',
        )
    by_study = {} if without_paper else {PAPER: paper_points()}
    if not without_paper and mixture != PAPER_MIXTURE:
        warnings.warn(
            f'the paper upcycled to {PAPER_MIXTURE}; its points are taken as '
            f'they stand for {mixture}.',
            UpcyclingWarning,
            stacklevel=2,
        )
    for path in runs:
        name, points = _read_runs(path, mixture)
        if name in by_study:
            raise ConfigError(
                '--runs',
                path,
                f'there is another study with the name {name}.',
                'give it once, or rename it.',
            )
        by_study[name] = points
    arms = fit_arms(
        *([point
           for of in by_study.values()
           for point in of[arm]]
          for arm in ARMS)
    )
    if runs and not without_paper:
        _warn_of_strangers(arms)
    own = [name for name in by_study if name != PAPER]
    return arms, own[0] if own else PAPER


def _warn_of_strangers(arms: Arms) -> None:
    """Says where runs and the paper's do not follow one law."""
    papers = fit_arms(**paper_points())
    for arm, law in arms.laws.items():
        together, alone = law.fit.residual_sd, papers.laws[arm].fit.residual_sd
        if together > _MOST_APART * alone:
            warnings.warn(
                f"{arm}: your runs do not share the exponents of the paper's: "
                f'together they lie {together:.3f} nats from a law, the '
                f"paper's alone {alone:.3f}. With more runs of your own, "
                '--without-paper fits those.',
                UpcyclingWarning,
                stacklevel=3,
            )


def _read_runs(path: str, mixture: Mixture) -> tuple[str, Points]:
    # They take a second.
    from foundry_upcycle.study.config import read_study
    from foundry_upcycle.study.measured import Measured, read_study_results
    from foundry_upcycle.study.plan_files import require_unchanged
    from foundry_upcycle.study.plan_runs import plan_grid
    measured = Measured(plan_grid(read_study(path)))
    require_unchanged(measured)
    results = read_study_results(measured)
    return results.grid.study.name, study_points(results, mixture)


def read_served(
    served: Optional[float],
    a_day: Optional[float],
    days: Optional[float],
) -> Optional[float]:
    """Tokens in the model's life; None where that is not said.

    Raises:
        ConfigError: It is said twice, or half.
    """
    if (a_day is None) != (days is None) or None not in (served, a_day):
        raise ConfigError(
            '--served, --served-a-day, --days',
            (served, a_day, days),
            'they do not say once how much is served.',
            'give --served, or --served-a-day and --days.',
        )
    if a_day is None or days is None:
        return served
    for key, value in (('--served-a-day', a_day), ('--days', days)):
        require_positive(key, value, 1e15, 'a number, such as 1e9')
    return a_day * days
