"""Reads the metrics of a run back from MLflow."""

import re
from dataclasses import dataclass
from typing import Mapping, Optional

import numpy as np
from mlflow import MlflowClient

__all__ = [
    'FINAL_STEPS',
    'MLFLOW_EXPERIMENT',
    'RunResult',
    'read_run',
]

MLFLOW_EXPERIMENT = 'quickstart'
# The paper's "final" loss is a mean over this many steps.
FINAL_STEPS = 50
_TRAIN_LOSS = 'metrics/train/LanguageCrossEntropy'

_EVAL_LOSS = re.compile(r'metrics/eval/(\w+)/LanguageCrossEntropy')
_ACCURACY = re.compile(r'metrics/(\w+)/\d+-shot/InContextLearning\w+Accuracy')
_GAUNTLET = re.compile(r'icl/metrics/eval_gauntlet/(\w+)')
_SHARE = re.compile(r'router/layer_(\d+)/expert_(\d+)/share')


@dataclass(frozen=True)
class RunResult:
    """What one training run measured.

    Args:
        train_loss: Cross entropy of each step, in nats a token, without any
            auxiliary loss.
        eval_loss: Held-out text -> cross entropy at the end.
        accuracy: Task -> accuracy at the end.
        gauntlet: Category or average -> the gauntlet's score at the end.
        share_steps: Steps at which expert shares were logged.
        expert_shares: (steps, layers, experts) share of token-slots that each
            expert got since the step before; None for a dense model.
    """

    train_loss: np.ndarray
    eval_loss: Mapping[str, float]
    accuracy: Mapping[str, float]
    gauntlet: Mapping[str, float]
    share_steps: Optional[np.ndarray] = None
    expert_shares: Optional[np.ndarray] = None

    @property
    def final_loss(self) -> float:
        """Mean training cross entropy over the last 50 steps (paper, Fig. 1)."""
        return float(self.train_loss[-FINAL_STEPS:].mean())


def read_run(tracking_uri: str, run_name: str, n_steps: int) -> RunResult:
    """Reads a finished run.

    Args:
        tracking_uri: Where Foundry's MLflow logger wrote.
        run_name: The run.
        n_steps: Steps it was to train.

    Raises:
        ValueError: There is no such run, or it lacks steps.
    """
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(MLFLOW_EXPERIMENT)
    runs = client.search_runs(
        [experiment.experiment_id],
        filter_string=f"tags.run_name = '{run_name}'",
    ) if experiment else []
    if not runs:
        raise ValueError(
            f'{run_name=} is not in experiment {MLFLOW_EXPERIMENT!r} of ' +
            f'{tracking_uri}. Run its stage first.',
        )
    run_id = runs[0].info.run_id
    _, train_loss = _history(client, run_id, _TRAIN_LOSS)
    if len(train_loss) != n_steps:
        raise ValueError(
            f'{run_name=} in {tracking_uri} has {len(train_loss)} of ' +
            f'{n_steps=} training losses. Remove its folder and run it again.',
        )
    final = runs[0].data.metrics
    share_steps, shares = _expert_shares(client, run_id, final)
    return RunResult(
        train_loss=train_loss,
        eval_loss=_named(_EVAL_LOSS, final),
        accuracy=_named(_ACCURACY, final),
        gauntlet=_named(_GAUNTLET, final),
        share_steps=share_steps,
        expert_shares=shares,
    )


def _named(
    pattern: re.Pattern,
    metrics: Mapping[str, float],
) -> dict[str, float]:
    return {
        match[1]: value
        for key, value in metrics.items()
        if (match := pattern.fullmatch(key))
    }


def _history(
    client: MlflowClient,
    run_id: str,
    key: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric.

    A run that resumed has logged the steps since its last checkpoint twice;
    the later value counts.
    """
    by_step = {m.step: m.value for m in client.get_metric_history(run_id, key)}
    steps = sorted(by_step)
    return np.array(steps), np.array([by_step[step] for step in steps])


def _expert_shares(
    client: MlflowClient,
    run_id: str,
    metrics: Mapping[str, float],
) -> tuple[Optional[np.ndarray], Optional[np.ndarray]]:
    places = {}
    for key in metrics:
        if match := _SHARE.fullmatch(key):
            places[int(match[1]), int(match[2])] = key
    if not places:
        return None, None
    histories = {
        place: dict(zip(*_history(client, run_id, key), strict=True))
        for place, key in places.items()
    }
    # The logger leaves out a value that equals the one before.
    steps = sorted(set().union(*histories.values()))
    n_layers, n_experts = (
        1 + max(axis) for axis in zip(*histories, strict=True)
    )
    shares = np.empty((len(steps), n_layers, n_experts))
    for (layer, expert), history in histories.items():
        value = np.nan
        for row, step in enumerate(steps):
            value = history.get(step, value)
            shares[row, layer, expert] = value
    return np.array(steps), shares
