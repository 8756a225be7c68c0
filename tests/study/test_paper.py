from dataclasses import replace
from pathlib import Path

import pytest
from study.report.synthetic import make_grid

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.paper import PaperPoint, load_paper, paper_durations

FRACTIONS = {'436M': (0.1, 0.2, 0.4, 0.8, 1.0), '1.4B': (0.1, 0.2, 0.4, 0.8)}
DURATIONS = {
    '436M': ('medium', 'long', 'extra_long'),
    '1.4B': ('medium', 'long')
}
# A token's FLOPs, mixture : dense, by the tables' tokens.
RATIOS = {'436M': 1.334, '1.4B': 1.468}


@pytest.fixture
def model(tmp_path: Path) -> ModelGrid:
    grid = make_grid(
        tmp_path,
        durations={
            'long': '354e9tok',
            'short': '1e9tok'
        },
        fractions=(0.4, ),
        seeds=(1, ),
        batch=10**4,
        paper='1.4B',
    )
    return grid.study.models[0]


def test_grid_is_whole():
    paper = load_paper()
    assert {name: tuple(of) for name, of in paper.items()} == DURATIONS
    for name, durations in paper.items():
        for duration in durations.values():
            assert tuple(duration.arms) == ('cpt', 'upcycled')
            for points in duration.arms.values():
                assert tuple(points) == FRACTIONS[name]


def test_points_as_published():
    paper = load_paper()
    assert paper['436M']['extra_long'].arms['upcycled'][0.8] == PaperPoint(
        120e9,
        1.923,
        0.186,
    )
    assert paper['1.4B']['medium'].arms['cpt'][0.1] == PaperPoint(
        14e9,
        1.882,
        0.217,
    )
    assert paper['436M']['medium'].dense_start == 0.1108
    assert paper['1.4B']['long'].pretraining_tokens == 354e9


def test_tokens_are_those_of_equal_flops():
    # Also tells that 160B stands where the paper misprints 100B.
    for name, durations in load_paper().items():
        for duration in durations.values():
            for fraction in FRACTIONS[name]:
                cpt = duration.arms['cpt'][fraction]
                upcycled = duration.arms['upcycled'][fraction]
                assert cpt.tokens == pytest.approx(
                    fraction * duration.pretraining_tokens,
                    rel=0.02,
                )
                assert cpt.tokens / upcycled.tokens == pytest.approx(
                    RATIOS[name],
                    rel=0.03,
                )


def test_durations_are_those_of_the_study(model: ModelGrid):
    assert paper_durations(model) == {'long': load_paper()['1.4B']['long']}


@pytest.mark.parametrize(
    'text,is_the_papers',
    [
        # 3 % are 10.62e9.
        ('343.5e9tok', True),
        ('364.5e9tok', True),
        ('343.3e9tok', False),
        ('364.7e9tok', False),
        ('354e9ba', False),
    ],
)
def test_a_duration_is_the_papers_if_it_is_as_long(
    model: ModelGrid,
    text: str,
    is_the_papers: bool,
):
    found = paper_durations(replace(model, durations={'long': text}))
    assert list(found) == ['long'] * is_the_papers


def test_a_duration_that_is_none(model: ModelGrid):
    with pytest.raises(
            ConfigError,
            match="models.small.durations.long='soon': it is not a duration",
    ):
        paper_durations(replace(model, durations={'long': 'soon'}))


def test_a_model_need_not_be_the_papers(model: ModelGrid):
    assert paper_durations(replace(model, paper=None)) == {}


def test_unknown_model_is_refused(model: ModelGrid):
    with pytest.raises(
            ConfigError,
            match="models.small.paper='7B': the paper has no such model. Fix: "
            'write one of 436M, 1.4B',
    ):
        paper_durations(replace(model, paper='7B'))
