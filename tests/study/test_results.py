from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from mlflow import MlflowClient

from foundry_upcycle.study.figures import plot_expert_load, plot_loss
from foundry_upcycle.study.results import MLFLOW_EXPERIMENT, RunResult, read_run

_LOSS = 'metrics/train/LanguageCrossEntropy'
_SHARE = 'router/layer_00/expert_{:02d}/share'


@pytest.fixture
def tracking_uri(tmp_path: Path) -> str:
    """One run of 60 steps that was interrupted after step 50."""
    uri = str(tmp_path / 'mlruns')
    client = MlflowClient(uri)
    experiment = client.create_experiment(MLFLOW_EXPERIMENT)
    run = client.create_run(experiment, tags={'run_name': 'cpt'}).info.run_id
    for step in range(50):
        client.log_metric(run, _LOSS, 9.0 if step >= 40 else 5.0, step=step)
    for step in range(40, 60):
        client.log_metric(run, _LOSS, 3.0, step=step)
    client.log_metric(run, 'metrics/eval/domain/LanguageCrossEntropy', 4.5)
    client.log_metric(
        run,
        'metrics/last_word/0-shot/InContextLearningLMAccuracy',
        0.25,
    )
    client.log_metric(run, 'icl/metrics/eval_gauntlet/core_average', 0.125)
    # Expert 1 keeps its share, so the logger writes it once.
    client.log_metric(run, _SHARE.format(0), 0.5, step=10)
    client.log_metric(run, _SHARE.format(0), 0.25, step=20)
    client.log_metric(run, _SHARE.format(1), 0.5, step=10)
    return uri


def test_reads_a_resumed_run(tracking_uri: str):
    result = read_run(tracking_uri, 'cpt', 60)
    assert result.train_loss.tolist() == [5.0] * 40 + [3.0] * 20
    # The last 50 of 60 steps: 30 x 5 and 20 x 3.
    assert result.final_loss == pytest.approx(4.2)
    assert result.eval_loss == {'domain': 4.5}
    assert result.accuracy == {'last_word': 0.25}
    assert result.gauntlet == {'core_average': 0.125}


def test_reads_expert_shares(tracking_uri: str):
    result = read_run(tracking_uri, 'cpt', 60)
    assert result.share_steps is not None and result.expert_shares is not None
    assert result.share_steps.tolist() == [10, 20]
    assert result.expert_shares.tolist() == [[[0.5, 0.5]], [[0.25, 0.5]]]


def test_no_such_run(tracking_uri: str):
    with pytest.raises(ValueError, match="run_name='upcycle' is not in"):
        read_run(tracking_uri, 'upcycle', 60)


def test_unfinished_run(tracking_uri: str):
    with pytest.raises(ValueError, match='has 60 of n_steps=80 training loss'):
        read_run(tracking_uri, 'cpt', 80)


def _result(**kwargs) -> RunResult:
    return RunResult(np.linspace(5, 4, 30), {}, {}, {}, **kwargs)


def test_figures_are_images(tmp_path: Path):
    shares = np.full((3, 2, 8), 1 / 8)
    run = _result(share_steps=np.array([10, 20, 30]), expert_shares=shares)
    plot_loss({'a': (run, 1e9), 'b': (run, 2e9)}, tmp_path / 'f' / 'loss.png')
    plot_expert_load(run, tmp_path / 'f' / 'load.png')
    for name in ('loss', 'load'):
        pixels = image.imread(tmp_path / 'f' / f'{name}.png')
        assert pixels.std() > 0.01


def test_no_expert_load_of_a_dense_model(tmp_path: Path):
    with pytest.raises(ValueError, match='expert_shares=None: the run logged'):
        plot_expert_load(_result(), tmp_path / 'load.png')
