"""Results of in-context tasks are kept example by example."""

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from llmfoundry.command_utils import eval_from_yaml
from llmfoundry.utils.builders import build_callback, build_icl_evaluators
from omegaconf import OmegaConf
from tiny_tasks import write_records
from two_ranks import run_on_two_ranks

from foundry_upcycle.callbacks.icl_results import _slug, _written
from foundry_upcycle.data.tokenizer import train_tokenizer
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.gauntlets import read_gauntlet
from foundry_upcycle.gauntlet.results import read_results

ROOT = Path(__file__).parents[2]
VOCAB = 280
# Two letters a word: enough pairs for the tokens beyond the bytes.
WORDS = [a + b for a in string.ascii_lowercase for b in 'aeiou']
N = 13  # Odd: two ranks do not get equally many.
LABELS = {'choice/1-shot', 'last/0-shot/long', 'last/0-shot/short'}


def write_tasks(folder: Path) -> list[dict[str, Any]]:
    choices = [
        {
            'query': f'the {WORDS[3 * i]}',
            # Foundry takes the first one's number for all.
            'choices':
            [WORDS[i + 40 * k] for k in range(2 if i in (4, 7) else 3)],
            'gold': i % 3,
        } for i in range(N)
    ]
    words = [{
        'context': f'a {word} is a',
        'continuation': word,
        'category': category,
    } for word in WORDS[:5] for category in ('short', 'long')]
    return [
        {
            'label': 'choice',
            'dataset_uri': str(write_records(folder / 'c.jsonl', choices)),
            'num_fewshot': [1],
            'icl_task_type': 'multiple_choice',
        },
        {
            'label': 'last',
            'dataset_uri': str(write_records(folder / 'l.jsonl', words)),
            'num_fewshot': [0],
            'icl_task_type': 'language_modeling',
            'has_categories': True,
        },
    ]


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, tasks, and a dense and an upcycled checkpoint."""
    folder = tmp_path_factory.mktemp('shared')
    train_tokenizer([' '.join(WORDS)], VOCAB, folder / 'tokenizer')
    for name, model in (
        ('dense', tiny.build_dense(vocab_size=VOCAB)),
        ('moe', tiny.build_moe(vocab_size=VOCAB)),
    ):
        tiny.save_dense(model, folder / f'{name}.pt')
    models = [{
        'model_name': name,
        'load_path': str(folder / f'{name}.pt'),
        'tokenizer': {
            'name': str(folder / 'tokenizer'),
            'kwargs': {},
        },
        'model': {
            'name': kind,
            'init_device': 'cpu',
            **config,
        },
    } for name, kind, config in (
        ('dense', 'mpt_causal_lm', tiny.dense_config(vocab_size=VOCAB)),
        ('moe', 'upcycled_mpt', tiny.moe_config(vocab_size=VOCAB)),
    )]
    config = {
        'max_seq_len': tiny.SEQ,
        'precision': 'fp32',
        'device_eval_batch_size': 6,
        'python_log_level': 'error',
        'models': models,
        'icl_tasks': write_tasks(folder),
        'callbacks': {
            'icl_results': {
                'folder': 'results',
            },
        },
    }
    OmegaConf.save(OmegaConf.create(config), folder / 'eval.yaml')
    return folder


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Foundry leaves task files there.


def evaluate(shared: Path, *overrides: str) -> Any:
    return eval_from_yaml(str(shared / 'eval.yaml'), list(overrides))


def results(folder: Path, model: str) -> dict[str, Any]:
    (path, ) = folder.glob(f'results/*{model}.json')
    return json.loads(path.read_text())['tasks']


def test_each_model_has_its_file(shared: Path, tmp_path: Path):
    trainers, _ = evaluate(shared)
    assert len(list((tmp_path / 'results').iterdir())) == 2
    for trainer, model in zip(trainers, ('dense', 'moe'), strict=True):
        found = results(tmp_path, model)
        assert found.keys() == LABELS
        for label, task in found.items():
            (metric, ) = trainer.state.eval_metrics[label].values()
            assert task['metric'] == type(metric).__name__
            assert task['n'] == int(metric.total) == len(task['correct'])
            assert task['correct'].count('1') == int(metric.correct)
            assert task['accuracy'] == pytest.approx(metric.compute().item())
            assert task['seconds'] > 0
        assert 0 < found['choice/1-shot']['accuracy'] < 1
        (path, ) = (tmp_path / 'results').glob(f'*{model}.json')
        content = json.loads(path.read_text())
        assert content['model']['source'] == str(shared / f'{model}.pt')
        n_params = sum(p.numel() for p in trainer.state.model.parameters())
        assert content['model']['n_params'] == n_params
        # What scores are computed from.
        read = read_results(str(path))
        assert read.tasks.keys() == {'choice/1-shot', 'last/0-shot'}


def test_two_ranks_give_what_one_does(shared: Path, tmp_path: Path):
    evaluate(shared)
    (tmp_path / 'two').mkdir()
    run_on_two_ranks(
        ROOT / 'eval.py',
        shared / 'eval.yaml',
        cwd=tmp_path / 'two',
    )
    # With these a rank of the next evaluation would replace what another reads.
    assert not list((tmp_path / 'two').glob('*_tmp'))
    for model in ('dense', 'moe'):
        one, two = results(tmp_path, model), results(tmp_path / 'two', model)
        for label in LABELS:
            assert one[label]['correct'] == two[label]['correct'], label


def test_another_callback_sees_the_outputs(shared: Path, tmp_path: Path):
    # Foundry's reads the same results, whichever comes first.
    tables = {}
    for first in ('eval_output_logging', 'icl_results'):
        config = OmegaConf.load(shared / 'eval.yaml')
        config.callbacks = {
            name: {
                'folder': first,
            } if name == 'icl_results' else {}
            for name in sorted(
                ('eval_output_logging', 'icl_results'),
                key=lambda name: name != first,
            )
        }
        config.models = config.models[:1]
        config.loggers = {'inmemory': {}}
        OmegaConf.save(config, tmp_path / 'eval.yaml')
        eval_from_yaml(str(tmp_path / 'eval.yaml'), [])
        (path, ) = (tmp_path / first).iterdir()
        tables[first] = {
            label: task['correct']
            for label, task in json.loads(path.read_text())['tasks'].items()
        }
    assert tables['eval_output_logging'] == tables['icl_results']


def test_results_are_not_overwritten(shared: Path, tmp_path: Path):
    evaluate(shared)
    (path, ) = (tmp_path / 'results').glob('*dense.json')
    path.write_text('earlier')
    _written.clear()  # As in another process.
    match = 'icl_results.folder=.results.: .*dense.json holds results of an'
    with pytest.raises(ConfigError, match=match):
        evaluate(shared)
    assert path.read_text() == 'earlier'
    evaluate(shared, 'callbacks.icl_results.overwrite=true')
    assert results(tmp_path, 'dense').keys() == LABELS


def test_one_checkpoint_twice_has_two_files(shared: Path, tmp_path: Path):
    config = OmegaConf.load(shared / 'eval.yaml')
    config.models = [config.models[0], config.models[0]]
    config.callbacks.icl_results.overwrite = True
    OmegaConf.save(config, tmp_path / 'eval.yaml')
    eval_from_yaml(str(tmp_path / 'eval.yaml'), [])
    first, second = sorted((tmp_path / 'results').iterdir())
    assert first.name.endswith('dense-2.json')
    assert second.name.endswith('dense.json')


def test_what_was_done_is_kept_when_the_run_dies(
    shared: Path,
    tmp_path: Path,
):
    broken = write_records(
        tmp_path / 'l.jsonl',
        [{
            'context': 'a',
            'continuation': ' '.join(WORDS),
            'category': 'long',
        }] * 3,
    )
    config = OmegaConf.load(shared / 'eval.yaml')
    config.icl_tasks[1].dataset_uri = str(broken)
    OmegaConf.save(config, tmp_path / 'eval.yaml')
    with pytest.raises(Exception, match='longer than the max seq len'):
        eval_from_yaml(str(tmp_path / 'eval.yaml'), [])
    (path, ) = (tmp_path / 'results').iterdir()
    assert path.name.endswith('dense.json.partial')
    assert json.loads(path.read_text())['tasks'].keys() == {'choice/1-shot'}


def test_what_is_left_out_is_said(
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    gauntlet = read_gauntlet('v0.3')
    labels = {b.label
              for b in gauntlet.benchmarks} - {
                  'copa/0-shot',
                  'mmlu/5-shot',
              }
    path = tmp_path / 'v0.3.yaml'
    OmegaConf.save(gauntlet.restricted(labels).to_yaml(), path)
    evaluate(shared, f'callbacks.icl_results.eval_gauntlet={path}')
    said = capsys.readouterr().out
    first = said.index('eval_gauntlet v0.3: left out')
    assert first < said.index('Printing complete results')
    assert 'as released: mmlu/5-shot, copa/0-shot. core_average is over ' in said
    assert 'the other 29 of 31 tasks' in said


def test_evaluations_during_training(shared: Path, tmp_path: Path):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(shared / 'tokenizer')
    evaluators, _ = build_icl_evaluators(
        write_tasks(tmp_path),
        tokenizer,
        default_max_seq_len=tiny.SEQ,
        default_batch_size=6,
    )
    callback = build_callback('icl_results', kwargs={'folder': 'results'})
    trainer = tiny.make_trainer(
        tiny.build_moe(vocab_size=VOCAB),
        callbacks=[callback],
        eval_dataloader=evaluators,
        eval_interval='2ba',
        run_name='mine',
    )
    trainer.fit()
    names = sorted(file.name for file in (tmp_path / 'results').iterdir())
    assert names == ['mine-ba2.json', 'mine-ba4.json']
    content = json.loads((tmp_path / 'results/mine-ba4.json').read_text())
    assert content['batch'] == 4 and content['run_name'] == 'mine'
    assert content['tasks'].keys() == LABELS
    # Of a folder of one run's evaluations, the last counts.
    assert read_results(str(tmp_path / 'results')).tasks
    trainer.close()
    assert torch.is_grad_enabled()


def test_long_names_are_cut():
    short, long = 'runs/moe/latest-rank0.pt', f's3://{"bucket/" * 40}moe.pt'
    assert _slug(short) == 'runs-moe-latest-rank0'
    assert len(_slug(long)) == 120 and _slug(long).endswith('-bucket-moe')
    assert _slug(long) != _slug(f'x{long}')


@pytest.mark.parametrize(
    'key,value',
    [
        ('folder', 5),
        ('folder', ''),
        ('folder', None),
        ('eval_gauntlet', ['a.yaml']),
        ('overwrite', 'false'),
    ],
)
def test_settings_of_another_type_are_refused(key: str, value: Any):
    with pytest.raises(
            ConfigError,
            match=f'callbacks.icl_results.{key}={re.escape(repr(value))}: .*set',
    ):
        build_callback('icl_results', {'folder': 'results', key: value})


@pytest.mark.parametrize('folder', ['file/results', 'x' * 300])
def test_a_folder_that_cannot_be_is_refused_before_the_run(
    tmp_path: Path,
    folder: str,
):
    (tmp_path / 'file').touch()
    callback = build_callback('icl_results', {'folder': str(tmp_path / folder)})
    with pytest.raises(
            ConfigError,
            match='callbacks.icl_results.folder=.* could not be written .*Fix',
    ):
        tiny.make_trainer(tiny.build_dense(), callbacks=[callback])
