import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.gauntlet.results import (
    ModelResults,
    read_n_examples,
    read_results,
    write_results,
)

COPA = 'metrics/copa/0-shot/InContextLearningMultipleChoiceAccuracy'
HISTORY = 'jeopardy/3-shot/american_history'
JEOPARDY = f'metrics/{HISTORY}/InContextLearningLMAccuracy'
METRICS = {
    COPA: 0.75,
    'icl/n_examples/copa/0-shot': 4.0,
    JEOPARDY: 0.5,
    'metrics/jeopardy/3-shot/science/InContextLearningLMAccuracy': 0.25,
    'metrics/copa/0-shot/InContextLearningMCExpectedCalibrationError': 0.1,
    'metrics/eval/LanguageCrossEntropy': 3.0,
    'icl/metrics/eval_gauntlet/core_average': 0.2,
}


def write(path: Path, **record: Any) -> Path:
    """A file of results on copa."""
    write_results(
        path,
        model={
            'name': 'ComposerMPTCausalLM',
            'source': 'moe.pt',
            'n_params': 1000,
        },
        run_name='eval',
        batch=0,
        precision='amp_bf16',
        tasks={
            'copa/0-shot': {
                'metric': 'InContextLearningMultipleChoiceAccuracy',
                'accuracy': 0.75,
                'n': 4,
                **record,
            },
        },
    )
    return path


def edit(path: Path, **changes: Any) -> str:
    write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(path)


def accuracies(results: ModelResults) -> dict[str, dict[str, float]]:
    return {
        task: {
            label: part.accuracy
            for label, part in parts.items()
        }
        for task, parts in results.tasks.items()
    }


def test_round_trip(tmp_path: Path):
    path = write(tmp_path / 'new' / 'moe.json', correct='0111', seconds=1.5)
    results = read_results(str(path))
    assert (results.label, results.source) == ('moe', str(path))
    assert results.n_params == 1000
    part = results.tasks['copa/0-shot']['copa/0-shot']
    assert part.metric == 'InContextLearningMultipleChoiceAccuracy'
    assert (part.accuracy, part.n, part.seconds) == (0.75, 4, 1.5)
    assert part.correct is not None
    assert part.correct.tolist() == [False, True, True, True]
    # Nothing else is left there.
    assert list(path.parent.iterdir()) == [path]


def test_what_may_be_absent(tmp_path: Path):
    results = read_results(str(write(tmp_path / 'moe.json')), 'mixture')
    part = results.tasks['copa/0-shot']['copa/0-shot']
    assert results.label == 'mixture'
    assert part.correct is None and part.seconds is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = write(tmp_path / 'moe.json')
    before = path.read_text()
    with pytest.raises(TypeError, match='not JSON serializable'):
        write(path, seconds=object())
    assert path.read_text() == before


def test_foundrys_metric_keys(tmp_path: Path):
    path = tmp_path / 'metrics.json'
    path.write_text(json.dumps(METRICS))
    results = read_results(str(path), n_examples={HISTORY: 8, 'copa/0-shot': 9})
    assert accuracies(results) == {
        'copa/0-shot': {
            'copa/0-shot': 0.75,
        },
        'jeopardy/3-shot': {
            HISTORY: 0.5,
            'jeopardy/3-shot/science': 0.25,
        },
    }
    # What was logged counts before what is supplied.
    assert results.tasks['copa/0-shot']['copa/0-shot'].n == 4
    jeopardy = results.tasks['jeopardy/3-shot']
    assert jeopardy[HISTORY].n == 8
    assert jeopardy['jeopardy/3-shot/science'].n is None


def test_a_folder_with_one_file_of_results(tmp_path: Path):
    (tmp_path / 'manifest.json').write_text('{"source": "x"}')
    path = write(tmp_path / 'moe.json')
    results = read_results(str(tmp_path))
    assert (results.label, results.source) == (tmp_path.name, str(path))


def test_the_last_evaluation_of_a_run(tmp_path: Path):
    for batch in (80, 1200, 400):
        write(tmp_path / f'upcycle-ba{batch}.json')
    results = read_results(str(tmp_path))
    assert results.source == str(tmp_path / 'upcycle-ba1200.json')


@pytest.mark.parametrize(
    'names',
    [
        ('dense', 'moe'),
        ('dense-ba8', 'moe-ba8'),
        ('moe-ba8', 'moe'),
        (),
    ],
)
def test_a_folder_with_several(tmp_path: Path, names: tuple[str, ...]):
    for name in names:
        write(tmp_path / f'{name}.json')
    found = ', '.join(f'{name}.json' for name in names) or 'none'
    with pytest.raises(ConfigError,
                       match=f'In this folder: {found}. Fix: name'):
        read_results(str(tmp_path))


def test_an_evaluation_that_did_not_finish(tmp_path: Path):
    path = write(tmp_path / 'moe.json.partial')
    match = (
        'moe.json.partial.: the evaluation did not finish. Fix: run it again, '
        'or rename the file to moe.json to score what it has'
    )
    with pytest.raises(ConfigError, match=match):
        read_results(str(path))
    with pytest.raises(ConfigError,
                       match='In this folder: moe.json.partial. Fix'):
        read_results(str(tmp_path))
    renamed = path.rename(tmp_path / 'moe.json')
    assert read_results(str(renamed)).tasks


@pytest.mark.parametrize(
    'finished,unfinished',
    [('dense', 'moe'), ('run-ba100', 'run-ba200')],
)
def test_an_unfinished_evaluation_beside_another(
    tmp_path: Path,
    finished: str,
    unfinished: str,
):
    path = write(tmp_path / f'{finished}.json')
    # Of the same model, which is being evaluated again.
    write(tmp_path / f'{finished}.json.partial')
    assert read_results(str(tmp_path)).source == str(path)
    write(tmp_path / f'{unfinished}.json.partial')
    found = f'{finished}.json, {unfinished}.json.partial'
    with pytest.raises(ConfigError, match=f'In this folder: {found}. Fix'):
        read_results(str(tmp_path))


def test_no_file(tmp_path: Path):
    with pytest.raises(ConfigError, match='there is no such file'):
        read_results(str(tmp_path / 'moe.json'))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"format": ', 'it is not JSON'),
        ('[1]', 'it holds a list, not an object'),
        ('{}', 'it has no accuracy of an in-context task'),
        (f'{{"{COPA}": 61}}', 'InContextLearning.*=61: an accuracy is between'),
        (f'{{"{COPA}": null}}', '=None: an accuracy is between'),
        (
            json.dumps({
                COPA: 0.5,
                'icl/n_examples/copa/0-shot': 0.5,
            }),
            'icl/n_examples/copa/0-shot=0.5: a number of examples is whole',
        ),
        (
            json.dumps({
                COPA: 0.5,
                'metrics/copa/0-shot/InContextLearningLMAccuracy': 0.5,
            }),
            'copa/0-shot has two accuracies, InContextLearningMultipleChoice'
            'Accuracy and InContextLearningLMAccuracy',
        ),
    ],
)
def test_files_that_say_nothing(tmp_path: Path, text: str, message: str):
    path = tmp_path / 'metrics.json'
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_results(str(path))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {
                'format': 'foundry_upcycle/icl_results/2',
            },
            "moe.json: format='foundry_upcycle/icl_results/2': this version",
        ),
        ({
            'tasks': None,
        }, 'moe.json: tasks=None: it is missing'),
        ({
            'model': {},
        }, 'moe.json: model.n_params=None: it is missing'),
        (
            {
                'tasks': {
                    'copa': {},
                },
            },
            "tasks='copa': it is not a task with its result",
        ),
        (
            {
                'tasks': {
                    'copa/0-shot': 0.5,
                },
            },
            "tasks='copa/0-shot': it is not a task with its result",
        ),
    ],
)
def test_broken_files(tmp_path: Path, changes: dict[str, Any], message: str):
    source = edit(tmp_path / 'moe.json', **changes)
    with pytest.raises(ConfigError, match=message):
        read_results(source)


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({
            'metric': None,
        }, 'tasks.copa/0-shot.metric=None: it is missing'),
        ({
            'accuracy': 1.5,
        }, 'tasks.copa/0-shot.accuracy=1.5: an accuracy is between'),
        ({
            'n': 0,
        }, 'tasks.copa/0-shot.n=0: a number of examples is whole'),
        ({
            'n': True,
        }, 'tasks.copa/0-shot.n=True: it is missing'),
        ({
            'n': 2**62,
        }, 'n=4611686018427387904: .* at most 1,000,000,000,000'),
        (
            # What a repetition in a pattern can't count to.
            {
                'n': 2**32,
                'correct': '0111',
            },
            "correct='0111': it is not a 0 or 1 for each of n=4294967296",
        ),
        (
            {
                'correct': '011',
            },
            "copa/0-shot.correct='011': it is not a 0 or 1 for each of n=4",
        ),
        (
            {
                'correct': '0121',
            },
            "correct='0121': it is not a 0 or 1",
        ),
        (
            {
                'correct': '0011',
            },
            '2 of 4 are right, which contradicts accuracy=0.75',
        ),
        ({
            'seconds': '1.5',
        }, "copa/0-shot.seconds='1.5': it is not how long"),
        ({
            'seconds': float('nan'),
        }, 'copa/0-shot.seconds=nan: it is not how long'),
    ],
)
def test_broken_tasks(tmp_path: Path, record: dict[str, Any], message: str):
    source = write(tmp_path / 'moe.json', **record)
    with pytest.raises(ConfigError, match=message):
        read_results(str(source))


def test_numbers_of_examples(tmp_path: Path):
    path = tmp_path / 'n.json'
    path.write_text('{"copa/0-shot": 100}')
    assert read_n_examples(str(path)) == {'copa/0-shot': 100}
    path.write_text('{"copa/0-shot": "many"}')
    with pytest.raises(ConfigError, match="copa/0-shot='many': a number of"):
        read_n_examples(str(path))


@pytest.fixture
def tracking_uri(tmp_path: Path) -> str:
    """A run named as Composer names runs, and two of one name."""
    uri = str(tmp_path / 'mlruns')
    client = MlflowClient(uri)
    experiment = client.create_experiment('gauntlet')
    run = client.create_run(
        experiment,
        run_name='upcycle-rank0',
        tags={
            'run_name': 'upcycle'
        },
    ).info.run_id
    client.log_metric(run, COPA, 0.25, step=10)
    client.log_metric(run, COPA, 0.75, step=20)
    client.log_metric(run, JEOPARDY, 0.5, step=20)
    client.log_metric(run, 'icl/n_examples/copa/0-shot', 4, step=20)
    for _ in range(2):
        client.create_run(experiment, run_name='twin')
    return uri


@pytest.mark.parametrize('scheme', ['', 'file://'])
@pytest.mark.parametrize('name', ['upcycle', 'upcycle-rank0'])
def test_mlflow(tracking_uri: str, name: str, scheme: str):
    source = f'mlflow:{scheme}{tracking_uri}#{name}'
    results = read_results(source)
    assert (results.label, results.source) == (name, source)
    assert accuracies(results) == {
        'copa/0-shot': {
            'copa/0-shot': 0.75,
        },
        'jeopardy/3-shot': {
            HISTORY: 0.5,
        },
    }
    assert results.tasks['copa/0-shot']['copa/0-shot'].n == 4


def test_mlflow_of_two_evaluations(tracking_uri: str):
    client = MlflowClient(tracking_uri)
    (run, ) = client.search_runs(
        [client.get_experiment_by_name('gauntlet').experiment_id],
        "attributes.run_name = 'upcycle-rank0'",
    )
    client.log_metric(run.info.run_id, COPA, 1.0, step=30)
    with pytest.warns(
            UpcyclingWarning,
            match=f'{JEOPARDY} have their latest values from before step 30',
    ):
        results = read_results(f'mlflow:{tracking_uri}#upcycle')
    assert accuracies(results)['copa/0-shot'] == {'copa/0-shot': 1.0}
    assert accuracies(results)['jeopardy/3-shot'] == {HISTORY: 0.5}


def test_mlflow_run_by_id(tracking_uri: str):
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name('gauntlet')
    assert experiment is not None
    run = client.search_runs(
        [experiment.experiment_id],
        "tags.run_name = 'upcycle'",
    )[0]
    results = read_results(f'mlflow:{tracking_uri}#{run.info.run_id}', 'moe')
    assert results.label == 'moe'
    assert 'copa/0-shot' in results.tasks


def test_no_such_mlflow_run(tracking_uri: str):
    with pytest.raises(ConfigError, match='0 runs have this name or id: none'):
        read_results(f'mlflow:{tracking_uri}#dense')


def test_mlflow_runs_of_one_name(tracking_uri: str):
    with pytest.raises(ConfigError, match='2 runs have this name or id: .+, '):
        read_results(f'mlflow:{tracking_uri}#twin')


@pytest.mark.parametrize('rest', ['{}', '{}#', '{}/none#upcycle', '#upcycle'])
def test_no_such_mlflow_store(tracking_uri: str, rest: str):
    source = f'mlflow:{rest.format(tracking_uri)}'
    with pytest.raises(ConfigError, match='there is no such MLflow store'):
        read_results(source)
    assert not (Path(tracking_uri) / 'none').exists()


def test_mlflow_refuses(tracking_uri: str):
    match = "can't be read: MlflowException: Invalid.* Fix: check the tracking"
    with pytest.raises(ConfigError, match=match):
        read_results(f'mlflow:{tracking_uri}#a"b')


def test_no_such_mlflow_database(tmp_path: Path):
    path = tmp_path / 'mlflow.db'
    with pytest.raises(ConfigError, match='there is no such MLflow store'):
        read_results(f'mlflow:sqlite:///{path}#upcycle')
    assert not path.exists()


def test_an_mlflow_database_that_cannot_be_opened(tmp_path: Path):
    # Whether SQLAlchemy can't be imported, is too new for MLflow, or finds
    # that this is no database.
    path = tmp_path / 'mlflow.db'
    path.write_text('no database' * 100)
    source = f'mlflow:sqlite:///{path}#upcycle'
    with pytest.raises(ConfigError, match=f"{source}.: it can't be read: "):
        read_results(source)


@pytest.mark.parametrize('kind', [ImportError, ValueError, KeyError])
def test_mlflow_fails(
    tracking_uri: str,
    kind: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
):

    def fail(*_: object) -> None:
        raise kind('FallbackPool')

    monkeypatch.setattr(MlflowClient, 'search_experiments', fail)
    match = f"can't be read: {kind.__name__}: .?FallbackPool.?. Fix: check"
    with pytest.raises(ConfigError, match=match):
        read_results(f'mlflow:{tracking_uri}#upcycle')
