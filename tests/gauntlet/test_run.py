import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.run import run

_KEY = 'metrics/{}/InContextLearningMultipleChoiceAccuracy'


@pytest.fixture
def dense(tmp_path: Path) -> str:
    return _save(tmp_path / 'dense.json', 0.6)


@pytest.fixture
def moe(tmp_path: Path) -> str:
    return _save(tmp_path / 'moe.json', 0.9)


def _save(path: Path, accuracy: float) -> str:
    metrics = {
        _KEY.format('copa/0-shot'): accuracy,
        _KEY.format('piqa/0-shot'): accuracy,
    }
    path.write_text(json.dumps(metrics))
    return str(path)


def test_writes_all_files(tmp_path: Path, dense: str, moe: str):
    out = tmp_path / 'new' / 'out'
    report = run(
        [f'start={dense}', moe],
        ['paper', 'v0.3'],
        baseline='start',
        out=str(out),
        n_examples={
            'copa/0-shot': 100,
            'piqa/0-shot': 1838
        },
    )
    assert sorted(file.name for file in out.iterdir()) == [
        'report.md',
        'scores.json',
        'scores.png',
    ]
    written = (out / 'report.md').read_text()
    assert report in written and '](scores.png)' in written
    assert '### moe against start' in report
    assert '### start against' not in report
    content = json.loads((out / 'scores.json').read_text())
    assert list(content['gauntlets']) == ['paper', 'v0.3']
    paper = content['gauntlets']['paper']
    assert paper['scores']['moe']['n_examples']['copa/0-shot'] == 100
    core = paper['comparisons']['moe']['averages']['core_average']
    # Above chance 0.8 against 0.2.
    assert core['relative'] == pytest.approx(3)
    assert core['verdict'] == 'higher'


def test_without_baseline_and_folder(dense: str, moe: str):
    report = run([dense, moe], ['paper'])
    assert '| copa/0-shot ' in report
    assert 'against' not in report.partition('## How to read it')[0]


def test_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'lr=1').mkdir()
    _save(tmp_path / 'lr=1' / 'moe.json', 0.6)
    _save(tmp_path / 'lr=2.json', 0.6)
    sources = ['lr=1/moe.json', 'lr=2.json', './lr=1/moe.json', 'a=lr=2.json']
    for source, label in zip(sources, ('moe', 'lr=2', 'moe', 'a')):
        assert f'| {label} ' in run([source], ['paper'])


def test_labels_with_slashes(dense: str):
    for label in ('a/b', 'lr:1/b', 'runs/none.json'):
        assert f'| {label} ' in run([f'{label}={dense}'], ['paper'])
    # What stands before the first one.
    with pytest.raises(ConfigError,
                       match="results='b=none': there is no such file"):
        run(['a=b=none'], ['paper'])


def test_labels_of_mlflow_runs(tmp_path: Path):
    uri = str(tmp_path / 'lr=1')
    client = MlflowClient(uri)
    experiment = client.create_experiment('gauntlet')
    found = client.create_run(experiment, run_name='moe').info.run_id
    client.log_metric(found, _KEY.format('copa/0-shot'), 0.75)
    source = f'mlflow:{uri}#moe'
    for text, label in ((source, 'moe'), (f'a/b={source}', 'a/b')):
        report = run([text], ['paper'])
        assert f'| {label} ' in report and f'`{source}`' in report


def test_labels_are_unique(dense: str):
    with pytest.raises(ConfigError,
                       match="results='dense': two have this name"):
        run([dense, dense], ['paper'])


def test_gauntlets_are_unique(dense: str):
    with pytest.raises(ConfigError, match="gauntlet='paper': two have this"):
        run([dense], ['paper', 'paper'])


def test_baseline_is_one_of_the_models(dense: str, moe: str):
    with pytest.raises(ConfigError, match="'start'.* take one of dense, moe"):
        run([dense, moe], ['paper'], baseline='start')


def test_a_folder_that_is_not_empty(tmp_path: Path, dense: str):
    # The very one with the results.
    with pytest.raises(ConfigError, match='out=.*folder that is not empty'):
        run([dense], ['paper'], out=str(tmp_path))
    run([dense], ['paper'], out=str(tmp_path), overwrite=True)
    assert Path(dense).exists() and (tmp_path / 'report.md').exists()
    run([dense], ['paper'], out=str(tmp_path), overwrite=True)


def test_a_file_in_the_place_of_the_folder(dense: str):
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match='it is a file, or a folder'):
            run([dense], ['paper'], out=dense, overwrite=overwrite)


def test_nothing_is_left_of_a_failure(
    tmp_path: Path,
    dense: str,
    monkeypatch: pytest.MonkeyPatch,
):

    def fail(*_: object) -> None:
        raise OSError('No space left on device')

    monkeypatch.setattr('foundry_upcycle.gauntlet.figure.plot_scores', fail)
    with pytest.raises(ConfigError, match="can't be written .No space left"):
        run([dense], ['paper'], out=str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
