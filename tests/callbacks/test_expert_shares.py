"""From a training's log to the file that the serving harness routes by."""

import json
import math
from pathlib import Path
from typing import Any, Iterator

import mlflow
import numpy as np
import pytest
import tiny
from composer.loggers import InMemoryLogger
from llmfoundry.utils.builders import build_callback, build_logger
from mlflow import MlflowClient
from typer.testing import CliRunner

from benchmarks.inference.engine import routing
from foundry_upcycle.callbacks.expert_shares import (
    ExpertShares,
    read_expert_shares,
    write_expert_shares,
)
from foundry_upcycle.cli.app import app
from foundry_upcycle.errors import CheckpointError, ConfigError

LAYERS, E = (0, 2), 8


def run_command(*args: object, code: int = 0) -> str:
    arguments = ['expert-shares', *(str(arg) for arg in args)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def name(layer: int, expert: int) -> str:
    return f'router/layer_{layer:02d}/expert_{expert:02d}/share'


def metrics(*layers: list[Any]) -> dict[str, Any]:
    """Names and values of these layers' shares, from layer 0."""
    return {
        name(layer, expert): share
        for layer, shares_E in enumerate(layers)
        for expert, share in enumerate(shares_E)
    }


def write_json(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def log_steps(folder: Path, *steps: tuple[int, dict[str, float]]) -> str:
    """An MLflow run that logged these metrics at these steps, in this order."""
    client = MlflowClient(str(folder / 'mlruns'))
    experiment = client.create_experiment('upcycling')
    run = client.create_run(experiment, run_name='upcycle').info.run_id
    for timestamp, (step, values) in enumerate(steps):
        for key, value in values.items():
            client.log_metric(run, key, value, timestamp, step)
    return str(folder / 'mlruns' / experiment / run)


@pytest.fixture(scope='module')
def trained(tmp_path_factory: Any) -> Iterator[tuple[str, InMemoryLogger]]:
    """A training's MLflow run, and all that it logged."""
    uri = str(tmp_path_factory.mktemp('trained') / 'mlruns')
    before = mlflow.get_tracking_uri()
    log = InMemoryLogger()
    settings = {
        'experiment_name': 'tiny',
        'tracking_uri': uri,
        'log_system_metrics': False,
    }
    trainer = tiny.make_trainer(
        tiny.build_moe({'moe_layers': list(LAYERS)}),
        callbacks=[build_callback('router_monitor', {'interval': '2ba'})],
        loggers=[log, build_logger('mlflow', settings)],
        run_name='upcycle',
        duration='8ba',
    )
    trainer.fit()
    trainer.close()
    mlflow.flush_async_logging()
    yield f'mlflow:{uri}#upcycle', log
    mlflow.set_tracking_uri(before)


def logged_shares(log: InMemoryLogger, last: int) -> np.ndarray:
    return np.array([[
        np.mean([float(value)
                 for _, value in log.data[name(layer, e)][-last:]])
        for e in range(E)
    ]
                     for layer in LAYERS])


@pytest.mark.parametrize('last', [1, 3])
def test_from_training_to_serving(
    trained: tuple[str, InMemoryLogger],
    last: int,
    tmp_path: Path,
):
    run, log = trained
    out = tmp_path / 'shares.json'
    text = run_command(run, '--out', out, '--last', last)
    assert text == f'wrote {out}: 2 layers of 8 experts\n'
    read = routing.expert_shares(
        {
            'kind': 'recorded',
            'file': str(out),
        },
        n_layers=2,
        n_experts=E,
        seed=0,
    )
    expected = logged_shares(log, last)
    np.testing.assert_allclose(read, expected, rtol=1e-12)
    # Neither layers nor experts are alike, or their order would not show.
    assert len(set(map(tuple, expected))) == 2 and expected.std() > 0.01
    content = json.loads(out.read_text())
    del content['shares']
    assert content == {
        'layers': [0, 2],
        'source': run,
        'steps': [2, 4, 6, 8][-last:],
    }
    assert list(tmp_path.iterdir()) == [out]


def test_the_folder_of_a_run(
    trained: tuple[str, InMemoryLogger],
    monkeypatch: pytest.MonkeyPatch,
):
    source, log = trained
    store = source.removeprefix('mlflow:').removesuffix('#upcycle')
    [folder] = [path.parent for path in Path(store).glob('*/*/metrics')]
    monkeypatch.chdir(folder.parent)
    for run in (str(folder), folder.name):
        shares = read_expert_shares(run)
        np.testing.assert_allclose(shares.shares, logged_shares(log, 1))
        assert shares.source == run


def test_a_database(tmp_path: Path):
    pytest.importorskip('sqlalchemy')  # Not in mlflow-skinny.
    uri = f'sqlite:///{tmp_path}/mlflow.db'
    client = MlflowClient(uri)
    run = client.create_run('0', run_name='upcycle').info.run_id
    for key, value in metrics([0.25, 0.75]).items():
        client.log_metric(run, key, value, step=10)
    shares = read_expert_shares(f'mlflow:{uri}#upcycle')
    assert shares.shares == [[0.25, 0.75]]
    assert shares.steps == [10]


def test_a_json_of_metrics(tmp_path: Path):
    values = {'loss/train/total': 3.0, 'router/mean/entropy': 0.5}
    # Layers and experts are numbers: 2 comes before 10.
    for layer, first in ((10, 0.1), (2, 0.2)):
        for expert in reversed(range(11)):
            share = first if expert == 2 else (1 - first) / 10
            values[f'router/layer_{layer}/expert_{expert}/share'] = share
    shares = read_expert_shares(write_json(tmp_path / 'metrics.json', values))
    assert shares.layers == [2, 10]
    assert [shares_E[2] for shares_E in shares.shares] == [0.2, 0.1]
    assert shares.steps == []


def test_a_share_that_stayed_is_not_logged_again(tmp_path: Path):
    # As Composer's logger does: 0 stays from step 10 to 20, 0.25 to 30.
    run = log_steps(
        tmp_path,
        (10, metrics([0.0, 0.5, 0.5])),
        (20, {
            name(0, 1): 0.75,
            name(0, 2): 0.25,
        }),
        (30, {
            name(0, 0): 0.25,
            name(0, 1): 0.5,
        }),
    )
    assert read_expert_shares(run, 1).shares == [[0.25, 0.5, 0.25]]
    both = read_expert_shares(run, 2)
    assert both.shares == [[0.125, 0.625, 0.25]]
    assert both.steps == [20, 30]


def test_what_a_resumed_run_logged_before_is_left_out(tmp_path: Path):
    run = log_steps(
        tmp_path,
        (10, metrics([0.5, 0.5])),
        (20, metrics([1.0, 0.0])),
        (30, metrics([0.0, 1.0])),
        # From a checkpoint at 15; at 30 it logged what it had at 20.
        (20, metrics([0.25, 0.75])),
    )
    assert read_expert_shares(run).shares == [[0.25, 0.75]]
    assert read_expert_shares(run, 2).steps == [10, 20]


def test_a_first_log_that_is_not_whole(tmp_path: Path):
    run = log_steps(
        tmp_path,
        (10, {
            name(0, 0): 0.9,
        }),
        (20, metrics([0.25, 0.75])),
    )
    assert read_expert_shares(run).shares == [[0.25, 0.75]]
    with pytest.raises(ConfigError, match='last=2: the routers were logged 1 '):
        read_expert_shares(run, 2)


def test_rounded_shares_are_normalised(tmp_path: Path):
    file = write_json(tmp_path / 'm.json', metrics([0.333, 0.333, 0.333]))
    [shares_E] = read_expert_shares(file).shares
    assert shares_E == [1 / 3] * 3


def test_a_nan_before_does_not_matter(tmp_path: Path):
    run = log_steps(
        tmp_path,
        (10, metrics([math.nan, math.nan])),
        (20, metrics([0.25, 0.75])),
    )
    assert read_expert_shares(run).shares == [[0.25, 0.75]]
    with pytest.raises(ConfigError, match='expert_00/share=nan: it is not a'):
        read_expert_shares(run, 2)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            {
                'loss/train/total': 3.0,
            },
            'it has no metrics router/layer_<i>/expert_<e>/share. Fix: add the '
            'callback router_monitor to the training',
        ),
        (
            metrics([0.5, 0.5], [0.25] * 4),
            r'of layer 0 it has the shares of experts \[0, 1\], not of all '
            'from 0 to 3. Fix: name a run whose layers have the same number',
        ),
        (
            {
                name(0, 0): 0.5,
                name(0, 2): 0.5,
            },
            r'of experts \[0, 2\], not of all from 0 to 2',
        ),
        (
            {
                name(0, 0): 0.5,
                name(0, 3 * 10**8): 0.5,
            },
            r'of experts \[0, 300000000\], not of all from 0 to 300000000',
        ),
        (
            metrics([0.5, 0.5], [0.5, math.nan]),
            'layer_01/expert_01/share=nan: it is not a share, between 0 and 1. '
            'Fix: look whether the training went wrong',
        ),
        (metrics([1.5, -0.5]), 'share=1.5: it is not a share'),
        (metrics(['0.5', 0.5]), "share='0.5': it is not a share"),
        (
            metrics([0.5, 0.5], [0.5, 0.498]),
            'the shares of layer 1 sum to 0.9980, not to 1. Fix: name a run',
        ),
        ([0.5], 'neither a run nor a JSON of metrics: it holds a list'),
    ],
)
def test_what_is_no_log_of_routers(tmp_path: Path, content: Any, message: str):
    file = write_json(tmp_path / 'metrics.json', content)
    with pytest.raises(ConfigError, match=message):
        read_expert_shares(file)


@pytest.mark.parametrize(
    'content',
    [b'[' * 10**5, b'\xff\xfe',
     b'{"a": %s}' % (b'9' * 400), b''],
)
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes):
    file = tmp_path / 'metrics.json'
    file.write_bytes(content)
    with pytest.raises(ConfigError, match='neither a run nor a JSON of met'):
        read_expert_shares(str(file))


def test_a_json_has_one_log(tmp_path: Path):
    file = write_json(tmp_path / 'metrics.json', metrics([0.5, 0.5]))
    with pytest.raises(ConfigError, match='last=2: .* 1 times. Fix: ask for'):
        read_expert_shares(file, 2)


def test_no_such_run(tmp_path: Path):
    log_steps(tmp_path, (1, metrics([1.0])))
    store = tmp_path / 'mlruns'
    with pytest.raises(ConfigError, match='^run=.*#dense.: 0 runs have this'):
        read_expert_shares(f'mlflow:{store}#dense')
    with pytest.raises(ConfigError, match='^run=.*: there is no such MLflow'):
        read_expert_shares(f'mlflow:{store}/none#upcycle')
    for path in (store, tmp_path / 'none'):
        with pytest.raises(ConfigError, match='^run=.* is neither a run nor'):
            read_expert_shares(str(path))
    broken = tmp_path / 'broken.json'
    broken.write_text('{"router')
    with pytest.raises(ConfigError, match='neither a run .*Unterminated'):
        read_expert_shares(str(broken))


def test_a_history_that_cannot_be_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run = log_steps(tmp_path, (1, metrics([1.0])))

    def fail(*_: object) -> None:
        raise ConnectionError('reset')

    monkeypatch.setattr(MlflowClient, 'get_metric_history', fail)
    with pytest.raises(ConfigError, match='^run=.*: ConnectionError: reset'):
        read_expert_shares(run)


def test_what_exists_is_kept(tmp_path: Path):
    out = tmp_path / 'shares.json'
    out.write_text('mine')
    shares = ExpertShares([[1.0]], [0], 'run', [])
    with pytest.raises(CheckpointError, match='it exists. Fix: .*--overwrite'):
        write_expert_shares(shares, str(out))
    assert out.read_text() == 'mine'
    file = write_json(tmp_path / 'metrics.json', metrics([0.5, 0.5]))
    assert 'error: ' in run_command(file, '--out', out, code=1)
    assert out.read_text() == 'mine'
    run_command(file, '--out', out, '--overwrite')
    assert json.loads(out.read_text())['shares'] == [[0.5, 0.5]]


def test_errors_of_the_command_are_one_line(tmp_path: Path):
    out = tmp_path / 'shares.json'
    text = run_command(tmp_path / 'none', '--out', out, code=1)
    assert text.startswith("error: run='") and text.count('\n') == 1
    assert not list(tmp_path.iterdir())
    run_command('metrics.json', '--out', out, '--last', 0, code=2)


def test_a_folder_is_not_replaced(tmp_path: Path):
    file = write_json(tmp_path / 'metrics.json', metrics([0.5, 0.5]))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis').touch()
    text = run_command(file, '--out', tmp_path / 'mine', '--overwrite', code=1)
    assert f'error: {tmp_path}/mine: it is a folder. Fix: name a file.' in text
    assert (tmp_path / 'mine' / 'thesis').exists()
