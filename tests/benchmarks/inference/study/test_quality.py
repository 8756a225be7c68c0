"""The section ``quality`` of a study, its other models, and their probes."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_quality import TEXT, changes_in, write_models
from tiny_serving import write_study

from benchmarks.inference.errors import HarnessError
from benchmarks.inference.run.plan import describe_plan
from benchmarks.inference.study.config import read_study
from benchmarks.inference.study.points import Point
from benchmarks.inference.study.probes import Probe, list_probes
from benchmarks.inference.study.quality import Greedy, Named
from benchmarks.inference.study.servers import (
    ServerSpec,
    list_servers,
    weight_bytes_of,
)
from benchmarks.inference.study.settings import Study


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_models(tmp_path)
    return tmp_path


def read(folder: Path, *changes: tuple[str, Any]) -> Study:
    return read_study(write_study(folder, [*changes_in(folder), *changes]))


def servers(folder: Path, *changes: tuple[str, Any]) -> tuple[ServerSpec, ...]:
    return list_servers(read(folder, *changes))


def probes(folder: Path, *changes: tuple[str, Any]) -> tuple[Probe, ...]:
    return list_probes(servers(folder, *changes))


def test_everything_is_read(models: Path):
    quality = read(models).sizes[0].quality
    assert quality is not None
    assert quality.texts == models / 'texts.jsonl'
    assert quality.greedy == Greedy(1, 2, 4)
    assert (quality.reference,
            quality.baseline) == (Named('moe'), Named('dense'))
    assert quality.tasks is None
    size = ('sizes tiny quality', {'reference': {'model': 'kept', 'top_k': 1}})
    quality = read(models, size).sizes[0].quality
    assert quality and quality.reference == Named('kept', 1)
    assert quality.greedy == Greedy(1, 2, 4)


def test_other_models_are_served_without_variants(models: Path):
    found = servers(models, ('variants', ['base', 'eager', 'int8_experts']))
    assert [server.label for server in found][-3:] == [
        'tiny kept moe E=4 K=1 base',
        'tiny kept moe E=4 K=2 base',
        'tiny mean dense base',
    ]
    assert len(found) == 3 + 3 + 2 + 3
    kept = found[-3]
    assert kept.model == models / 'kept'
    assert kept.config['model']['folder'] == str(models / 'kept')
    # 2 x 2 of bfloat16.
    assert weight_bytes_of(kept) == 8
    assert len({server.id for server in found}) == len(found)


def test_other_models_take_as_many_experts_as_they_have(models: Path):
    found = servers(models, ('top_k', [2, 8]))
    labels = [server.label for server in found if server.name == 'kept']
    assert labels == ['tiny kept moe E=4 K=2 base']
    with pytest.raises(HarnessError, match=r'^top_k=\[8\]: .*kept has 4 exp'):
        servers(models, ('top_k', [8]))


def test_other_models_are_there(models: Path):
    (models / 'mean' / 'config.json').unlink()
    problem = r'^sizes.tiny.others.mean.folder=.*no config.json of a model'
    with pytest.raises(HarnessError, match=problem):
        servers(models)


def test_a_study_without_them_keeps_its_ids(models: Path):
    both = servers(models)
    alone = list_servers(
        read_study(
            write_study(
                models,
                [
                    *changes_in(models)[:3],
                    (
                        'sizes tiny',
                        {
                            name: {
                                'folder': str(models / name)
                            }
                            for name in ('dense', 'moe')
                        },
                    ),
                ],
            ),
        ),
    )
    assert [Point(s, 1.0, 0).id
            for s in alone] == [Point(s, 1.0, 0).id for s in both[:3]]
    assert list_probes(alone) == ()


def test_each_server_is_asked(models: Path):
    found = probes(models)
    assert [probe.server.label
            for probe in found] == [server.label for server in servers(models)]
    # The mixture with the most experts a token, and the dense model.
    assert {probe.reference for probe in found} == {(None, 8, 2)}
    assert {probe.baseline for probe in found} == {(None, 1, 1)}
    named = ('quality reference', {'model': 'kept', 'top_k': 1})
    assert probes(models, named)[0].reference == ('kept', 4, 1)
    *_, line, _ = describe_plan(read(models))
    assert line.startswith('quality: 6 servers are asked')


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('quality greedy prompts', 2),
        ('quality baseline', {
            'model': 'mean'
        }),
        ('quality reference', {
            'top_k': 1
        }),
        ('engine enforce_eager', False),
    ],
)
def test_what_else_is_asked_is_another_probe(
    models: Path,
    key: str,
    value: Any,
):
    before = {probe.id for probe in probes(models)}
    assert not before & {probe.id for probe in probes(models, (key, value))}


def test_other_texts_are_another_probe(models: Path):
    before = {probe.id for probe in probes(models)}
    (models / 'texts.jsonl').write_text(json.dumps(TEXT))
    assert not before & {probe.id for probe in probes(models)}


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('quality speed', 1, 'quality.speed=1: there is no such setting'),
        ('quality texts', None, 'quality.texts=None: it is missing'),
        ('quality greedy words', 1, 'quality.greedy.words=1: there is no such'),
        ('quality greedy prompts', 0, 'quality.greedy.prompts=0: it is out of'),
        (
            'quality greedy input_tokens',
            30,
            'quality.greedy=34: prompts and answers are longer than '
            'engine.max_model_len=32',
        ),
        (
            'quality reference',
            {
                'model': 'healed'
            },
            "quality.reference={'model': 'healed', 'top_k': None}: the study "
            'serves no such model without a variant. Fix: name one of dense, '
            'moe, kept, mean, with',
        ),
        (
            'quality reference',
            {
                'top_k': 4
            },
            "quality.reference={'model': 'moe', 'top_k': 4}: the study serves",
        ),
        (
            'quality baseline',
            {
                'name': 'mean'
            },
            'quality.baseline.name=\'mean\': there is no such setting',
        ),
        (
            'quality tasks',
            {
                'names': ['chess'],
                'data': '.'
            },
            "quality.tasks.names='chess': there is no such task. Fix: name "
            'some of arc_easy, ',
        ),
        (
            'quality tasks',
            {
                'names': ['brackets'],
                'data': '.'
            },
            "quality.tasks.data='.': it has no brackets.jsonl, the records of",
        ),
        (
            'sizes tiny others',
            {
                'moe': {
                    'folder': 'a'
                }
            },
            "sizes.tiny.others='moe': a size has one of that name",
        ),
        (
            'sizes tiny others kept speed',
            1,
            'sizes.tiny.others.kept.speed=1: there is no such setting',
        ),
    ],
)
def test_bad_settings(models: Path, key: str, value: Any, message: str):
    with pytest.raises(HarnessError) as error:
        probes(models, (key, value))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        (
            'quality',
            {
                'texts': 'a'
            },
            "quality={'texts': 'a'}: dummy weights have no quality",
        ),
        (
            'sizes tiny others',
            {
                'a': {
                    'folder': 'a'
                }
            },
            "sizes.tiny.others={'a': {'folder': 'a'}}: dummy weights are of",
        ),
    ],
)
def test_dummy_weights(tmp_path: Path, key: str, value: Any, message: str):
    with pytest.raises(HarnessError) as error:
        read_study(write_study(tmp_path, [(key, value)]))
    assert str(error.value).startswith(message)


def test_tasks_need_lm_eval_and_a_tokenizer(models: Path):
    (models / 'brackets.jsonl').write_text('{}\n')
    tasks = {'names': ['brackets'], 'data': str(models)}
    with pytest.raises(
            HarnessError,
            match=r'^quality.tasks.python=.*lm-eval is not installed. Fix: run ',
    ):
        probes(models, ('quality tasks', {**tasks, 'python': 'nowhere'}))
    (models / 'python').write_text('')
    with pytest.raises(HarnessError, match=r'^quality.tasks=.*no tokenizer.js'):
        probes(
            models,
            ('quality tasks', {
                **tasks, 'python': str(models / 'python')
            }),
        )


def test_texts_are_checked_before_anything_is_served(models: Path):
    (models / 'texts.jsonl').write_text('{"prompt": [1, 512]}')
    with pytest.raises(HarnessError, match=r'^quality.texts=.* has token 512'):
        probes(models)
