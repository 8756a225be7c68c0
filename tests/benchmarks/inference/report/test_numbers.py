"""Numbers of the report against arithmetic by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_study import one_by_one, simulate_study, write_point

from benchmarks.inference.report.estimates import (
    Estimate,
    closed_of,
    drop_of,
    mean_of,
)
from benchmarks.inference.report.expert_load import expert_load
from benchmarks.inference.report.gaps import LOWER_K, find_gaps
from benchmarks.inference.report.maximum import (
    PLATEAU,
    UNBOUNDED,
    common_kind,
    find_maxima,
    highest_seen,
    maximum_runs,
    too_short,
)
from benchmarks.inference.report.paper import paper_model, paper_size
from benchmarks.inference.report.percentiles import percentiles, steady_times
from benchmarks.inference.report.records import Arm
from benchmarks.inference.report.results import read_points
from benchmarks.inference.report.speculation import find_speculation
from benchmarks.inference.report.summary import DENSE, Summary

K1, K2 = Arm(8, 1), Arm(8, 2)
# Student's t(0.975, 2), from printed tables.
T2 = 4.302653


def read(folder: Path) -> Summary:
    return Summary(read_points(folder))


def write_runs(folder: Path, values: list[float], *args: Any, **kwargs: Any):
    """A run for each throughput."""
    for run, value in enumerate(values):
        write_point(folder, *args, run=run, throughput=value, **kwargs)


def test_a_mean_has_an_interval_over_runs():
    # Standard deviation 1, error 1 / sqrt(3).
    found = mean_of([9.0, 10.0, 11.0])
    assert found and found.value == 10 and found.n_runs == 3
    half = T2 / 3**0.5
    assert found.interval == pytest.approx((10 - half, 10 + half), rel=1e-6)


def test_one_run_has_no_interval_and_none_no_mean():
    assert mean_of([3.0]) == Estimate(3.0, None, 1)
    assert mean_of([]) is None
    assert drop_of({0: 4.0}, {0: 3.0}) == Estimate(0.25, None, 1)


def test_a_drop_is_of_the_runs_that_both_have():
    # Runs 1 and 2: 1 - (60 + 90) / (100 + 200); run 0 has no dense one.
    found = drop_of({1: 100.0, 2: 200.0}, {0: 1.0, 1: 60.0, 2: 90.0})
    assert found and found.n_runs == 2
    assert found.value == pytest.approx(0.5)
    assert found.interval and found.interval[0] < 0.5 < found.interval[1]
    assert drop_of({0: 1.0}, {1: 1.0}) is None


def test_a_drop_that_all_runs_share_is_sure():
    # What moves both models of a run alike is no doubt about the drop.
    found = drop_of({0: 100.0, 1: 200.0}, {0: 60.0, 1: 120.0})
    assert found and found.value == pytest.approx(0.4)
    assert found.interval == pytest.approx((0.4, 0.4))


def test_a_gap_closed():
    # Means: variant 70, base 50, dense 100: 20 of 50. By run (variant - base) -
    # 0.4 (dense - base) is -1, 0, 1 over a gap of 50: sd 0.02.
    found = closed_of(
        {
            0: 69.0,
            1: 70.0,
            2: 71.0
        },
        dict.fromkeys(range(3), 50.0),
        dict.fromkeys(range(3), 100.0),
        more_is_better=True,
    )
    assert found and found.value == pytest.approx(0.4)
    half = T2 * 0.02 / 3**0.5
    assert found.interval == pytest.approx((0.4 - half, 0.4 + half), rel=1e-6)


def test_a_gap_closed_in_latency():
    # From 4 s to 3.5 s, of 4 s to 2 s.
    found = closed_of({0: 3.5}, {0: 4.0}, {0: 2.0}, more_is_better=False)
    assert found == Estimate(0.25, None, 1)


def test_where_there_is_no_gap():
    assert closed_of({0: 1.0}, {0: 2.0}, {0: 2.0}, more_is_better=True) is None
    assert closed_of({0: 1.0}, {0: 2.0}, {0: 1.0}, more_is_better=True) is None
    assert closed_of({0: 1.0}, {0: 1.0}, {1: 2.0}, more_is_better=True) is None


def test_a_gap_not_told_apart_from_none_has_no_interval():
    # Gaps of -1 and 3: 1 in the mean; gained 0.5 in both.
    found = closed_of(
        {
            0: 1.5,
            1: 1.5
        },
        {
            0: 1.0,
            1: 1.0
        },
        {
            0: 0.0,
            1: 4.0
        },
        more_is_better=True,
    )
    assert found == Estimate(0.5, None, 2)


def test_a_maximum_is_the_mean_of_saturated_rates(tmp_path: Path):
    write_runs(tmp_path, [500.0, 510.0], rate=1.0)
    write_runs(tmp_path, [900.0, 980.0], rate=2.0, saturated=True)
    write_runs(tmp_path, [1000.0, 1020.0], rate=3.0, saturated=True)
    write_runs(tmp_path, [1100.0, 1110.0], rate=None)
    summary = read(tmp_path)
    runs = maximum_runs(summary, '430m', DENSE, PLATEAU)
    assert runs == {0: 950.0, 1: 1000.0}
    found = find_maxima(summary, '430m')[DENSE]
    assert found.kind == PLATEAU
    assert found.throughput.value == 975
    assert found.drop is None
    assert found.beside and found.beside.value == 1105
    assert found.disagreement == pytest.approx(1105 / 975 - 1)
    assert highest_seen(summary, '430m', DENSE) == 1105


def test_a_rate_saturates_in_most_of_its_runs(tmp_path: Path):
    for rate, marks in ((1.0, (True, False, False)), (2.0, (True, True,
                                                            False))):
        for run, saturated in enumerate(marks):
            write_point(
                tmp_path,
                rate=rate,
                run=run,
                throughput=100 * rate + run,
                saturated=saturated,
            )
    summary = read(tmp_path)
    # Marked by chance or not, all runs of the rate count, and no other.
    assert maximum_runs(summary, '430m', DENSE, PLATEAU) == {
        0: 200.0,
        1: 201.0,
        2: 202.0,
    }
    # But latency is told only where no run is saturated.
    assert summary.keeping_up('430m', [DENSE]) == ()


def test_all_of_a_size_are_compared_by_one_measure(tmp_path: Path):
    write_point(tmp_path, rate=2.0, saturated=True, throughput=1000.0)
    write_point(tmp_path, rate=None, throughput=1050.0)
    write_point(tmp_path, 8, 1, rate=None, throughput=630.0)
    write_point(tmp_path, 8, 2, rate=None, throughput=420.0)
    maxima = find_maxima(read(tmp_path), '430m')
    assert {found.kind for found in maxima.values()} == {UNBOUNDED}
    # 1 - 630 / 1050, 1 - 420 / 1050.
    assert maxima[K1].drop == Estimate(pytest.approx(0.4), None, 1)
    assert maxima[K2].drop == Estimate(pytest.approx(0.6), None, 1)
    assert maxima[DENSE].disagreement == pytest.approx(1000 / 1050 - 1)


def test_no_maximum_without_saturation(tmp_path: Path):
    write_point(tmp_path)
    assert find_maxima(read(tmp_path), '430m') == {}


def test_gaps_of_variants_and_of_lower_k(tmp_path: Path):
    for experts, top_k, variant, latency, throughput in (
        (1, 1, 'base', 2.0, 1000.0),
        (8, 1, 'base', 3.0, 700.0),
        (8, 2, 'base', 4.0, 600.0),
        (8, 2, 'fp8', 3.5, 800.0),
        (1, 1, 'fp8', 1.5, 1600.0),
    ):
        for rate, saturated in ((0.5, False), (1.0, False), (2.0, True)):
            write_point(
                tmp_path,
                experts,
                top_k,
                rate,
                variant=variant,
                latency=latency * rate,
                throughput=throughput,
                saturated=saturated,
            )
    lower, fp8 = find_gaps(read(tmp_path), '430m')
    assert (lower.variant, lower.arm, lower.base) == (LOWER_K, K1, K2)
    # At 0.5/s: (1.5 - 2) / (1 - 2). Then (700 - 600) / (1000 - 600).
    assert lower.rate == 0.5
    assert lower.latency == Estimate(pytest.approx(0.5), None, 1)
    assert lower.throughput == Estimate(pytest.approx(0.25), None, 1)
    assert lower.drop is None
    assert (fp8.variant, fp8.arm, fp8.base) == ('fp8', Arm(8, 2, 'fp8'), K2)
    # (1.75 - 2) / (1 - 2); (800 - 600) / (1000 - 600); 1 - 800 / 1600.
    assert fp8.latency == Estimate(pytest.approx(0.25), None, 1)
    assert fp8.throughput == Estimate(pytest.approx(0.5), None, 1)
    assert fp8.drop == Estimate(pytest.approx(0.5), None, 1)


def test_a_variant_without_its_base_has_no_gap(tmp_path: Path):
    for experts, top_k, variant, throughput in (
        (1, 1, 'base', 1000.0),
        (8, 2, 'base', 500.0),
        (1, 1, 'fp8', 1200.0),
        (8, 1, 'fp8', 900.0),
    ):
        for rate in (1.0, None):
            write_point(
                tmp_path,
                experts,
                top_k,
                rate,
                variant=variant,
                throughput=throughput,
            )
    gap, = find_gaps(read(tmp_path), '430m')
    assert (gap.arm, gap.base) == (Arm(8, 1, 'fp8'), None)
    assert (gap.rate, gap.latency, gap.throughput) == (None, None, None)
    # 1 - 900 / 1200 needs no base.
    assert gap.drop == Estimate(pytest.approx(0.25), None, 1)


def test_gaps_of_throughput_are_per_device(tmp_path: Path):
    for arm, devices, latency, throughput in (
        (DENSE, 1, 2.0, 1000.0),
        (K2, 1, 4.0, 500.0),
        (Arm(8, 2, 'two'), 2, 3.0, 1400.0),
    ):
        for rate in (1.0, None):
            write_point(
                tmp_path,
                arm.experts,
                arm.top_k,
                rate,
                variant=arm.variant,
                latency=latency,
                throughput=throughput,
                engine={'devices': devices},
            )
    gap, = find_gaps(read(tmp_path), '430m')
    assert (gap.devices, gap.base_devices) == (2, 1)
    assert gap.is_per_device
    # (1400 / 2 - 500) / (1000 - 500); (3 - 4) / (2 - 4) s.
    assert gap.throughput == Estimate(pytest.approx(0.4), None, 1)
    assert gap.latency == Estimate(pytest.approx(0.5), None, 1)


def test_latency_gaps_are_of_rates_that_all_keep_up_with(tmp_path: Path):
    for arm, latency in ((DENSE, 2.0), (K2, 4.0), (Arm(8, 2, 'fp8'), 3.0)):
        for rate in (0.5, 1.0):
            for run in range(2):
                # One run of one of them is enough.
                saturated = (arm, rate, run) == (K2, 0.5, 1)
                write_point(
                    tmp_path,
                    arm.experts,
                    arm.top_k,
                    rate,
                    run,
                    variant=arm.variant,
                    latency=9.0 if rate == 0.5 else latency,
                    saturated=saturated,
                )
    gap, = find_gaps(read(tmp_path), '430m')
    assert gap.rate == 1.0
    assert gap.latency and gap.latency.value == pytest.approx(0.5)


@pytest.mark.parametrize(('n_requests', 'slots', 'counts'), [
    (6, 1, True),
    (5, 1, False),
    (18, 3, True),
    (17, 3, False),
])
def test_a_plateau_is_of_many_batches(
    tmp_path: Path,
    n_requests: int,
    slots: int,
    counts: bool,
):
    # Answers of 3 s each that begin every 3 / slots s.
    begun = [3 * i / slots for i in range(n_requests)]
    write_point(
        tmp_path,
        throughput=500.0,
        saturated=True,
        requests={
            'start': [0.0] * n_requests,
            'end': [3 * (i + slots) / slots for i in range(n_requests)],
            'ttft': begun,
            'input_tokens': [1] * n_requests,
            'output_tokens': [1] * n_requests,
        },
    )
    summary = read(tmp_path)
    runs = maximum_runs(summary, '430m', DENSE, PLATEAU)
    assert runs == ({0: 500.0} if counts else {})
    assert len(too_short(summary, '430m', DENSE)) == (0 if counts else 1)
    assert highest_seen(summary, '430m', DENSE) == (500.0 if counts else None)


def test_the_plateau_compares_only_if_all_have_it(tmp_path: Path):
    for experts, top_k in ((1, 1), (8, 1), (8, 2)):
        write_point(tmp_path, experts, top_k, 2.0, saturated=True)
        write_point(tmp_path, experts, top_k, None)
    arms = DENSE, K1, K2
    assert common_kind(read(tmp_path), '430m', arms) == PLATEAU
    # Of another mixture the plateau is of too few requests.
    write_point(
        tmp_path,
        8,
        4,
        2.0,
        saturated=True,
        requests=one_by_one(5),
    )
    write_point(tmp_path, 8, 4, None)
    summary = read(tmp_path)
    assert common_kind(summary, '430m', (*arms, Arm(8, 4))) == UNBOUNDED
    assert common_kind(summary, '430m', arms) == PLATEAU


def test_percentiles_leave_out_what_came_before_the_steady_state(
    tmp_path: Path,
):
    # The clock may begin anywhere.
    path = write_point(
        tmp_path,
        requests={
            'start': [5.0, 6.0, 7.0],
            'end': [6.0, 9.0, 12.0],
            'ttft': [0.5, 1.0, 1.5],
            'input_tokens': [1, 1, 1],
            'output_tokens': [1, 1, 1],
        },
    )
    record = json.loads(path.read_text())
    record['measured']['steady_from_s'] = 1.0
    path.write_text(json.dumps(record))
    point, = read_points(tmp_path)
    assert steady_times(point, 'latency').tolist() == [3, 5]
    assert steady_times(point, 'time to first token').tolist() == [1, 1.5]


def test_mean_latencies_are_of_the_same_requests(tmp_path: Path):
    simulate_study(tmp_path, n_runs=1)
    points = [p for p in read_points(tmp_path) if p.measured]
    assert any(p.measured and p.measured.steady_from > 0 for p in points)
    for point in points:
        assert point.measured
        mean = float(np.mean(steady_times(point, 'latency')))
        assert mean == pytest.approx(point.measured.latency)


def test_percentiles_are_means_over_runs(tmp_path: Path):
    for run, longest in enumerate((10.0, 20.0)):
        write_point(
            tmp_path,
            run=run,
            requests={
                'start': [0.0, 1.0, 2.0],
                'end': [2.0, 5.0, 2.0 + longest],
                'ttft': [0.5, 1.0, 1.5],
                'input_tokens': [1, 1, 1],
                'output_tokens': [1, 1, 1],
            },
        )
    summary = read(tmp_path)
    mean, p50, p90, _ = percentiles(summary, '430m', DENSE, 1.0, 'latency')
    assert mean and p50 and p90
    # Of 2, 4, 10 and of 2, 4, 20 s: 16 / 3 and 26 / 3; 4; 8.8 and 16.8.
    assert mean.value == pytest.approx(7.0)
    assert p50.value == 4
    assert p90.value == pytest.approx((8.8 + 16.8) / 2)
    first = percentiles(summary, '430m', DENSE, 1.0, 'time to first token')
    assert first[0] == Estimate(1.0, (1.0, 1.0), 2)


def test_speculation_is_of_latency_until_saturation(tmp_path: Path):
    for variant, latency, throughput in (
        ('base', 6.0, 500.0),
        ('ngram', 4.0, 400.0),
    ):
        for rate, saturated in ((1.0, False), (2.0, True), (None, True)):
            write_point(
                tmp_path,
                8,
                2,
                rate,
                variant=variant,
                latency=latency,
                throughput=throughput,
                saturated=saturated,
                counters={
                    'spec_accepted': 30,
                    'spec_drafted': 40
                } if variant == 'ngram' else None,
            )
    slow, fast, unbounded = find_speculation(read(tmp_path), '430m')
    assert slow.acceptance == Estimate(0.75, None, 1)
    # 6 s / 4 s; 400 / 500 tokens a second.
    assert slow.speed_up == Estimate(pytest.approx(1.5), None, 1)
    assert fast.speed_up == Estimate(pytest.approx(0.8), None, 1)
    assert (slow.is_saturated, fast.is_saturated) == (False, True)
    assert unbounded.rate is None and unbounded.is_saturated


def test_speculation_is_of_throughput_if_any_run_is_saturated(tmp_path: Path):
    drafted = {'spec_accepted': 30, 'spec_drafted': 40}
    for run in range(2):
        write_point(
            tmp_path,
            8,
            2,
            run=run,
            latency=6.0,
            throughput=500.0,
            saturated=run == 1,
        )
        write_point(
            tmp_path,
            8,
            2,
            run=run,
            variant='ngram',
            latency=4.0,
            throughput=400.0,
            counters=drafted,
        )
    found, = find_speculation(read(tmp_path), '430m')
    assert found.is_saturated
    assert found.speed_up and found.speed_up.value == pytest.approx(0.8)


def test_sizes_are_in_order_of_all_their_weights(tmp_path: Path):
    for size, devices, weight_bytes in (
        ('two', 4, 3000),
        ('one', 1, 10_000),
        ('unknown', 1, None),
    ):
        write_point(
            tmp_path,
            size=size,
            engine={
                'devices': devices,
                'weight_bytes': weight_bytes,
            },
        )
    assert read(tmp_path).sizes == ('unknown', 'one', 'two')


def test_expert_load_is_of_an_even_share(tmp_path: Path):
    for run, share in enumerate((0.5, 0.7)):
        shares = [[share, 1 - share], [0.5, 0.5]]
        write_point(tmp_path, 2, 1, run=run, expert_load={'shares': shares})
    load = expert_load(read(tmp_path), '430m', Arm(2, 1))
    # 0.6 and 0.4, twice.
    np.testing.assert_allclose(load, [[1.2, 0.8], [1, 1]])
    assert expert_load(read(tmp_path), '430m', DENSE) is None


@pytest.mark.parametrize(('size', 'name'), [
    ('430m', '436M'),
    ('1b', '1.4B'),
    ('8b', '8B'),
])
def test_the_papers_drops_are_those_of_its_throughputs(size: str, name: str):
    paper = paper_size(size)
    assert paper and paper.name == name
    dense = paper.models[1, 1].throughput
    for arm in (K1, K2):
        model = paper_model(size, arm)
        assert model and model.drop
        # Printed as whole percentages.
        assert 1 - model.throughput / dense == pytest.approx(
            model.drop, abs=6e-3
        )
    assert paper_model(size, Arm(16, 1)) is None
    assert paper_model('tiny', K1) is None
