from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from matplotlib.colors import same_color, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from study.report.synthetic import (
    Measured,
    make_grid,
    make_results,
    plain_study,
)

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.figures import COLORS, MARKERS, render
from foundry_upcycle.study.grid import Place, Run
from foundry_upcycle.study.paper import load_paper
from foundry_upcycle.study.report.figures import Drawing, draw_figures
from foundry_upcycle.study.report.figures.look import DENSE
from foundry_upcycle.study.report.relative import relative_to_start
from foundry_upcycle.study.report.serving import Serving, Throughput
from foundry_upcycle.study.report.summary import Summary
from foundry_upcycle.study.results import ExpertLoad

FRACTIONS = (0.1, 0.4)
SERVING = Serving(
    'serving.json',
    ('CPU', 'dummy weights'),
    {
        ('small', 1, 1): Throughput(1000.0, 900.0, 1200.0),
        ('small', 8, 2): Throughput(500.0, 400.0, 600.0),
    },
)


def load_of(n_layers: int) -> ExpertLoad:
    """At step 10 the first expert got half of it, at step 20 an eighth."""
    shares = np.full((2, n_layers, 8), 1 / 8)
    shares[0] = 0.5 / 7
    shares[0, :, 0] = 0.5
    return ExpertLoad(np.array([10, 20]), tuple(range(n_layers)), shares)


def of_study(folder: Path, n_layers: int = 2, **settings: Any) -> Summary:
    """Two durations, two arms, two seeds; scores 0.2 and a quarter more."""
    grid = make_grid(
        folder,
        **{
            'durations': {
                'medium': '43.6e9tok',
                'long': '100e9tok'
            },
            'fractions': FRACTIONS,
            'seeds': (1, 2),
            'texts': ('web', ),
            'has_gauntlet': True,
            'paper': '436M',
            'batch': 136250,  # 10,000 steps of medium.
            **settings
        },
    )

    def measure(run: Run) -> Measured:
        if run.place.arm is None:
            return Measured(3.5, {'web': 3.0}, (0.2, 0.2))
        is_dense = run.place.arm.startswith('cpt')
        return Measured(
            3 - run.place.budget,
            {'web': 2.5},
            (0.2, 0.3),
            load=None if is_dense else load_of(n_layers),
        )

    return Summary(make_results(grid, measure))


def drawings(
    summary: Summary,
    serving: Optional[Serving] = None,
) -> dict[str, Drawing]:
    return {drawing.name: drawing for drawing in draw_figures(summary, serving)}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawing]:
    summary = of_study(tmp_path_factory.mktemp('study'))
    return drawings(summary, SERVING)


def lines(figure: Figure, panel: int, color: str, behind: bool) -> list[Line2D]:
    """Of a colour; those of the paper are behind, and fainter."""
    return [
        line for line in figure.axes[panel].lines
        if same_color(line.get_color(), color) and len(line.get_xdata()) > 1 and
        (line.get_alpha() is not None) == behind
        and line.get_linestyle() != 'None'
    ]


def test_what_is_drawn(drawn: dict[str, Drawing]):
    assert list(drawn) == [
        'gains_small',
        'quality_small',
        'curves_small',
        'experts_small_upcycled',
        'serving_small',
    ]


def test_gains_have_a_panel_for_each_measure(drawn: dict[str, Drawing]):
    labels = [axes.get_ylabel() for axes in drawn['gains_small'].figure.axes]
    assert labels == [
        'Core Average, change\nfrom dense start (%)',
        'final training loss\n(nats per token)',
        'loss on held-out web\n(nats per token)',
    ]


@pytest.mark.parametrize(
    ('panel', 'expected'),
    [(0, (25, 25)), (1, (2.9, 2.6)), (2, (2.5, 2.5))],
)
def test_gains_of_both_arms(
    drawn: dict[str, Drawing],
    panel: int,
    expected: tuple[float, float],
):
    figure = drawn['gains_small'].figure
    for color in COLORS[:2]:
        found = lines(figure, panel, color, behind=False)
        # Of each duration one, apart from the points by little.
        assert [line.get_linestyle() for line in found] == ['-', '--']
        assert [line.get_marker() for line in found] == list(MARKERS[:2])
        for line in found:
            assert line.get_ydata() == pytest.approx(expected)
            assert line.get_xdata() == pytest.approx(FRACTIONS, abs=0.031)


def test_the_papers_points_are_behind(drawn: dict[str, Drawing]):
    paper = load_paper()['436M']
    figure = drawn['gains_small'].figure
    for color, arm in zip(COLORS, ('cpt', 'upcycled')):
        quality, loss, held_out = (
            lines(figure, panel, color, behind=True) for panel in range(3)
        )
        assert not held_out
        for line, name in zip(loss, ('medium', 'long'), strict=True):
            points = paper[name].arms[arm]
            assert list(line.get_xdata()) == list(points)
            assert list(line.get_ydata()
                       ) == [point.final_loss for point in points.values()]
        # Long, upcycled, at 0.8: 0.168 / 0.129 - 1.
        if arm == 'upcycled':
            assert quality[1].get_ydata()[3] == pytest.approx(30.2326, abs=1e-3)


def test_dense_start_is_a_line(drawn: dict[str, Drawing]):
    held_out = lines(drawn['gains_small'].figure, 2, DENSE, behind=False)
    assert [set(line.get_ydata()) for line in held_out] == [{3.0}, {3.0}]
    # Its training loss is on other text.
    assert not lines(drawn['gains_small'].figure, 1, DENSE, behind=False)


def test_quality_has_a_panel_for_each_duration(drawn: dict[str, Drawing]):
    figure = drawn['quality_small'].figure
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ['pretraining: medium', 'pretraining: long']
    for panel, start in enumerate((0.1108, 0.129)):
        for color in COLORS[:2]:
            (line, ) = lines(figure, panel, color, behind=False)
            assert line.get_ydata() == pytest.approx((0.25, 0.25))
        (own, ) = lines(figure, panel, DENSE, behind=False)
        (papers, ) = lines(figure, panel, DENSE, behind=True)
        assert set(own.get_ydata()) == {0.2}
        assert set(papers.get_ydata()) == {start}


def test_error_bars_are_the_intervals(tmp_path: Path):
    summary = Summary(plain_study(tmp_path))
    (metric, ) = summary.metrics
    figure = drawings(summary)['gains_small'].figure
    (bars, ) = [
        container.lines[2][0].get_segments()
        for container in figure.axes[0].containers
        if same_color(container.lines[0].get_color(), COLORS[0])
    ]
    points = summary.points(summary.models[0], 'long', 'cpt')
    for bar, point in zip(bars, points, strict=True):
        mean = summary.mean(metric, point)
        assert mean is not None
        assert bar[:, 1] == pytest.approx(mean.interval)


def test_bars_of_changes_hold_what_chance_does_to_the_start(
    drawn: dict[str, Drawing],
    tmp_path: Path,
):
    # All seeds score alike, so that all spread is of examples.
    summary = of_study(tmp_path)
    place = Place('small', 'medium', 'cpt', FRACTIONS[0])
    mean = relative_to_start(summary, place)
    assert mean is not None and mean.interval is not None
    assert mean.over == 'seeds and examples'
    bars = drawn['gains_small'].figure.axes[0].containers[0].lines[2][0]
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx([100 * end for end in mean.interval])
    assert high - low > 20


def test_without_tasks_no_quality(tmp_path: Path):
    assert list(drawings(Summary(plain_study(tmp_path)))) == [
        'gains_small',
        'curves_small',
    ]


def test_a_start_of_0_draws_no_change(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'medium': '10000ba'},
        fractions=FRACTIONS,
        seeds=(1, ),
        has_gauntlet=True,
    )
    study = make_results(
        grid,
        lambda run:
        Measured(accuracies=(0.2, 0.2) if run.place.arm else (0, 0)),
    )
    drawing = drawings(Summary(study))['gains_small']
    (axes, ) = drawing.figure.axes
    assert axes.get_ylabel() == 'final training loss\n(nats per token)'
    assert (
        'Left out: the change in Core Average after medium, as the dense start '
        'is not measured or scores 0 or less'
    ) in drawing.caption


def test_unknown_model_of_the_paper_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="paper='7B': the paper has no such"):
        drawings(of_study(tmp_path, paper='7B'))


def test_an_arm_has_one_colour_everywhere(drawn: dict[str, Drawing]):
    for name in ('gains_small', 'quality_small', 'curves_small',
                 'serving_small'):
        (legend, ) = drawn[name].figure.legends
        colors = {
            text.get_text(): to_hex(handle.get_color())
            for text, handle in zip(legend.get_texts(), legend.get_lines())
        }
        assert colors['cpt'] == COLORS[0].lower()
        assert colors['upcycled'] == COLORS[1].lower()


def test_curves_are_against_flops(tmp_path: Path):
    study = plain_study(tmp_path)
    figure = drawings(Summary(study))['curves_small'].figure
    (axes, ) = figure.axes
    assert axes.get_title() == 'pretraining: long, x0.4'
    assert axes.get_xlabel() == 'FLOPs after the dense start (GFLOP)'
    for color, arm in zip(COLORS, ('cpt', 'upcycled')):
        run = study.grid[f'small_long_{arm}_0.4_s1']
        raw, smooth = (
            line for line in axes.lines if same_color(line.get_color(), color)
        )
        assert len(raw.get_xdata()) == run.n_steps
        assert raw.get_xdata()[0] == pytest.approx(run.flops_per_step / 1e9)
        assert raw.get_xdata()[-1] == pytest.approx(run.flops / 1e9)
        # The mean of 20 steps stands at the last of them.
        assert len(smooth.get_xdata()) == run.n_steps - 19
        assert smooth.get_xdata()[0] == raw.get_xdata()[19]


def test_curves_are_smoothed(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '1000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        arms=('cpt', ),
    )
    study = make_results(
        grid,
        lambda run: Measured(train_loss=np.arange(run.n_steps) % 2.0),
    )
    figure = drawings(Summary(study))['curves_small'].figure
    _, smooth = figure.axes[0].lines
    assert smooth.get_ydata() == pytest.approx(np.full(381, 0.5))


def test_curves_of_runs_that_diverged(tmp_path: Path):
    grid = make_grid(
        tmp_path,
        durations={'long': '1000ba'},
        fractions=(0.4, ),
        seeds=(1, ),
        arms=('cpt', ),
    )
    study = make_results(grid, lambda run: Measured(np.nan))
    assert 'curves_small' in drawings(Summary(study))


def test_expert_load(drawn: dict[str, Drawing]):
    drawing = drawn['experts_small_upcycled']
    # The longest duration, the largest fraction, the first seed.
    assert 'Run: small_long_upcycled_0.4_s1.' in drawing.caption
    left, right = drawing.figure.axes[:2]
    *layers, even = left.lines
    assert len(layers) == 2
    for line in layers:
        assert list(line.get_xdata()) == [10, 20]
        assert line.get_ydata() == pytest.approx((50, 12.5))
    assert set(even.get_ydata()) == {12.5}
    assert np.asarray(right.images[0].get_array()
                     ) == pytest.approx(12.5 * np.ones((2, 8)))
    assert {text.get_text() for text in right.texts} == {'12'}


def test_many_layers_are_shades(tmp_path: Path):
    drawing = drawings(of_study(tmp_path, 7))['experts_small_upcycled']
    labels = [axes.get_ylabel() for axes in drawing.figure.axes]
    # A colour bar of layers beside that of loads.
    assert labels.count('layer') == 2
    assert not drawing.figure.legends


def test_serving_cost(drawn: dict[str, Drawing]):
    drawing = drawn['serving_small']
    (axes, ) = drawing.figure.axes
    assert axes.get_title() == 'small (CPU, dummy weights)'
    assert '(CPU, dummy weights)' in drawing.caption
    for color, cost in zip(COLORS, (1.0, 2.0)):
        found = lines(drawing.figure, 0, color, behind=False)
        assert len(found) == 2
        # Set apart around what it costs.
        places = [line.get_xdata()[0] for line in found]
        assert np.mean(places) == pytest.approx(cost)
        assert places[1] - places[0] == pytest.approx(0.03)
        for line in found:
            assert line.get_ydata() == pytest.approx((0.25, 0.25))


def test_serving_cost_without_tasks_is_against_loss(tmp_path: Path):
    summary = Summary(plain_study(tmp_path))
    (axes, ) = drawings(summary, SERVING)['serving_small'].figure.axes
    assert axes.get_ylabel() == 'final training loss (nats per token)'


def test_no_serving_figure_without_a_match(tmp_path: Path):
    other = Serving('serving.json', (), {('large', 1, 1): Throughput(1, 1, 1)})
    summary = Summary(plain_study(tmp_path))
    assert 'serving_small' not in drawings(summary, other)


@pytest.mark.parametrize('kind', ['png', 'svg'])
def test_files_are_the_same_each_time(tmp_path: Path, kind: str):
    summary = Summary(plain_study(tmp_path))
    first, second = (
        render(drawings(summary)['gains_small'].figure, kind) for _ in range(2)
    )
    assert first == second
    # No date.
    assert b'dc:date' not in first
