"""``analysis/steady.py``: by hand, and on simulated servers."""

import heapq
from typing import Any, Optional

import numpy as np
import pytest

from benchmarks.inference.analysis.steady import (
    Timings,
    measure,
    steady_throughput,
)
from benchmarks.inference.study.search import knee, search
from benchmarks.inference.study.settings import Rates

# Of the simulated server, requests/s.
CAPACITY = 2.0
INPUT, OUTPUT = 256, 32


def serve(rate: Optional[float], n: int, seed: int, slots: int = 1) -> Timings:
    """A server whose slots each take one request for a fixed time.

    Poisson arrivals over n / rate seconds, as the tool has them, first come
    first served; one slot is the queue M/D/1. A fifth of the time is prefill.

    Args:
        rate: Requests/s; None: all at once.
        n: Requests.
        seed: Of the arrivals.
        slots: Requests at a time. More of them take longer each.
    """
    gaps = np.zeros(n)
    if rate is not None:
        gaps = np.random.default_rng(seed).exponential(size=n)
        gaps *= n / rate / gaps.sum()
    seconds = slots / CAPACITY
    free = [0.0] * slots
    start = np.cumsum(gaps)
    begin = []
    for time in start:
        begin.append(max(time, heapq.heappop(free)))
        heapq.heappush(free, begin[-1] + seconds)
    return Timings(
        start.tolist(),
        [time + seconds for time in begin],
        (np.array(begin) - start + seconds / 5).tolist(),
        [INPUT] * n,
        [OUTPUT] * n,
    )


def batched(rate: Optional[float], n: int, seed: int) -> Timings:
    """A server that batches as vLLM does: step by step, new prompts at once.

    A step takes 20 ms, 2 ms for each answer under way, of which there are 8 at
    the most, and 30 ms for each prompt.

    Args:
        rate: Requests/s; None: all at once.
        n: Requests.
        seed: Of the arrivals.
    """
    start = serve(rate, n, seed).start
    first, end = np.zeros(n), np.zeros(n)
    left: dict[int, int] = {}
    time, admitted = 0.0, 0
    while admitted < n or left:
        if not left:
            time = max(time, start[admitted])
        prompts = []
        while (admitted < n and start[admitted] <= time
               and len(left) + len(prompts) < 8):
            prompts.append(admitted)
            admitted += 1
        running = len(left) + len(prompts)
        time += 0.02 + 0.002 * running + 0.03 * len(prompts)
        left = {request: tokens - 1 for request, tokens in left.items()}
        left |= dict.fromkeys(prompts, OUTPUT - 1)
        first[prompts] = time
        for request in [r for r, tokens in left.items() if tokens == 0]:
            end[request] = time
            del left[request]
    return Timings(
        start.tolist(),
        end.tolist(),
        (first - start).tolist(),
        [INPUT] * n,
        [OUTPUT] * n,
    )


def requests_per_s(tokens_per_s: float) -> float:
    return tokens_per_s / (INPUT + OUTPUT)


def throughput_of(
    timings: Timings,
    rate: Optional[float],
) -> tuple[float, tuple[float, float]]:
    """Tokens/s, and the window that they are of."""
    steady = measure(timings, rate)
    return steady.throughput_tokens_per_s, steady.window


def by_hand(**changes: Any) -> Timings:
    """One request after another, each 1 s of prefill and 2 s of decoding."""
    values: dict[str, Any] = {
        'start': [0.0, 3.0, 6.0, 9.0],
        'end': [3.0, 6.0, 9.0, 12.0],
        'ttft': [1.0, 1.0, 1.0, 1.0],
        'input_tokens': [100] * 4,
        'output_tokens': [11] * 4,
        **changes,
    }
    return Timings(**values)


def test_throughput_between_first_tokens():
    # First tokens come at 1, 4, 7, 10. Ramp: the median latency of 3 s, but at
    # most a quarter of 9 s; of those after 2.25 s, the first is at 4, the last
    # at 10. In these 6 s: two prompts with a first token (101 each) and two
    # answers' other 10 tokens: 222 / 6.
    throughput, window = throughput_of(by_hand(), 1 / 3)
    assert window == (4.0, 10.0)
    assert throughput == pytest.approx(222 / 6)


def test_window_counts_from_the_first_start():
    moved = by_hand(
        start=[50.0, 53.0, 56.0, 59.0],
        end=[53.0, 56.0, 59.0, 62.0],
    )
    assert throughput_of(moved, 1 / 3)[1] == (4.0, 10.0)


def test_first_tokens_that_come_together_open_no_window():
    # Those at 4 and 4.1 are of one step; the mean gap is 2.5 s. The window
    # opens at 4.1: two prompts, and of answers 1.9 / 2, 2 and nothing.
    timings = Timings(
        [0.0, 3.0, 3.0, 6.0, 9.0],
        [3.0, 6.0, 6.0, 9.0, 12.0],
        [1.0, 1.0, 1.1, 1.0, 1.0],
        [100] * 5,
        [11] * 5,
    )
    throughput, window = throughput_of(timings, 0.5)
    assert window == (4.1, 10.0)
    answers = 10 * (1.9 / 2 + 1 + 1)
    assert throughput == pytest.approx((202 + answers) / 5.9)


def test_tokens_of_an_answer_count_as_they_come():
    # From the first token at 3 to the last at 9. Of the first answer's 10
    # tokens after its first, at 3 to 13, 6 come in that time.
    timings = Timings([0.0, 8.0], [13.0, 17.0], [3.0, 1.0], [100] * 2, [11] * 2)
    throughput, window = steady_throughput(timings, 0)
    assert window == (3.0, 9.0)
    assert throughput == pytest.approx((101 + 6) / 6)
    timings = Timings(
        [0.0, 4.0, 8.0],
        [13.0, 14.0, 17.0],
        [3.0, 1.0, 1.0],
        [100] * 3,
        [11] * 3,
    )
    throughput, window = steady_throughput(timings, 0)
    assert window == (3.0, 9.0)
    # Prompts at 5 and 9; 4/9 of the answer of 5 to 14.
    assert throughput == pytest.approx((202 + 6 + 10 * 4 / 9) / 6)


def test_a_window_opens_when_the_batch_is_full():
    # Two slots; prompts take 1 s, and answers end 4 s later. Requests pile up:
    # sent every second, they start at 0, 1, 5, 6, 10, 11, ... The first token
    # at 1 finds one answer under way, that at 2 two, as at the last.
    begin = [5.0 * (k // 2) + k % 2 for k in range(24)]
    timings = Timings(
        list(range(24)),
        [time + 5 for time in begin],
        [time + 1 - k for k, time in enumerate(begin)],
        [100] * 24,
        [9] * 24,
    )
    assert throughput_of(timings, 1.0) == (
        pytest.approx(2 * 109 / 5),
        (2.0, 57.0),
    )


@pytest.mark.parametrize('jitter', [0.0, 0.2])
@pytest.mark.parametrize('n', [24, 40])
def test_batches_in_lockstep(n: int, jitter: float):
    # All at once: 8 prompts take 1 s, their answers 3 s, and the next 8 follow;
    # first tokens of a batch come one after another.
    waves = np.arange(n) // 8
    first = 1 + 4 * waves + jitter * (np.arange(n) % 8) / 8
    timings = Timings(
        [0.0] * n,
        (4 + 4 * waves).tolist(),
        first.tolist(),
        [100] * n,
        [11] * n,
    )
    throughput, (low, high) = throughput_of(timings, None)
    # Whole batches of 8 x 111 tokens in 4 s.
    cycles = (high - low) / 4
    assert cycles == pytest.approx(n // 8 - 1, abs=0.06)
    assert throughput == pytest.approx(8 * 111 / 4, rel=0.03)


def test_one_batch_is_its_whole_run():
    # All four start at 0 and end at 4: no first token follows the first end.
    timings = Timings([0.0] * 4, [4.0] * 4, [1.0] * 4, [100] * 4, [11] * 4)
    measured = measure(timings, None)
    assert measured.window == (0.0, 4.0)
    assert measured.throughput_tokens_per_s == pytest.approx(4 * 111 / 4)
    assert measured.achieved == pytest.approx(1.0)
    assert measured.in_flight_slope is None
    assert measured.saturated


def test_a_client_too_busy_to_see_answers():
    # All first tokens are seen in 0.1 s of a run of 2 s.
    timings = Timings(
        [0.0] * 4,
        [1.9, 1.9, 2.0, 2.0],
        [1.9, 1.9, 1.95, 2.0],
        [100] * 4,
        [11] * 4,
    )
    assert throughput_of(timings, None) == (222.0, (0.0, 2.0))


def test_answers_of_one_token():
    timings = by_hand(ttft=[3.0] * 4, output_tokens=[1] * 4)
    # Prompts end at 3, 6, 9, 12 and the ramp at 2.25: three of 101 tokens in
    # 9 s.
    assert throughput_of(timings, 1 / 3)[0] == pytest.approx(303 / 9)


def test_latency_is_of_what_arrives_after_the_ramp():
    # Median latency 2, a quarter of 9 s is 2.25: the first request is left out.
    timings = by_hand(end=[9.0, 5.0, 8.0, 11.0])
    measured = measure(timings, 1 / 3)
    assert measured.latency_mean_s == pytest.approx(2.0)
    assert measured.steady_from_s == pytest.approx(2.0)


def test_achieved_by_hand():
    # Sent every second, ended every 1.5 s: 1 / 1.5 of the rate.
    timings = Timings(
        list(range(8)),
        [1 + 1.5 * k for k in range(8)],
        [0.5 + 0.5 * k for k in range(8)],
        [100] * 8,
        [11] * 8,
    )
    measured = measure(timings, 1.0)
    assert measured.achieved == pytest.approx(1 / 1.5)
    assert measured.saturated


def test_in_flight_slope_by_hand():
    # Nothing ends before the last arrival: each second adds one request.
    timings = Timings(range(81), [200.0] * 81, [1.0] * 81, [9] * 81, [2] * 81)
    measured = measure(timings, 1.0)
    assert measured.in_flight_slope == pytest.approx(1.0, rel=1e-3)
    assert measured.saturated


def test_no_slope_where_as_many_end_as_arrive():
    timings = Timings(
        range(81),
        [k + 4.0 for k in range(81)],
        [1.0] * 81,
        [9] * 81,
        [2] * 81,
    )
    measured = measure(timings, 1.0)
    assert measured.in_flight_slope == pytest.approx(0.0, abs=1e-9)
    assert measured.achieved == pytest.approx(1.0)
    assert not measured.saturated


def test_order_of_requests_does_not_matter():
    timings = serve(1.5, 50, 0)
    shuffled = np.random.default_rng(0).permutation(50)
    again = Timings(
        timings.start[shuffled].tolist(),
        timings.end[shuffled].tolist(),
        (timings.first - timings.start)[shuffled].tolist(),
        [INPUT] * 50,
        [OUTPUT] * 50,
    )
    assert measure(again, 1.5) == measure(timings, 1.5)


@pytest.mark.parametrize('slots', [1, 8])
@pytest.mark.parametrize('load', [1.3, 2.0, None])
def test_saturated_throughput_is_the_capacity(
    slots: int,
    load: Optional[float],
):
    for seed in range(20):
        rate = None if load is None else load * CAPACITY
        measured = measure(serve(rate, 400, seed, slots), rate)
        found = requests_per_s(measured.throughput_tokens_per_s)
        assert measured.saturated
        assert found == pytest.approx(CAPACITY, rel=0.02)
        # A growing queue is no work: offered 2 x, achieved 1 x.
        assert measured.achieved == pytest.approx(CAPACITY, rel=0.06)


@pytest.mark.parametrize('load', [1.5, 2.0, 4.0])
@pytest.mark.parametrize('n', [48, 96])
def test_few_requests_bias_no_capacity(n: int, load: float):
    capacity = measure(batched(None, 2000, 0), None).throughput_tokens_per_s
    rate = load * capacity / (INPUT + OUTPUT)
    found = [
        measure(batched(rate, n, seed), rate).throughput_tokens_per_s / capacity
        for seed in range(40)
    ]
    # What opens after the ramp is up to 10 % too high here.
    assert np.mean(found) == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize('slots', [1, 8])
@pytest.mark.parametrize('load', [0.1, 0.5, 0.8])
def test_throughput_below_capacity_is_the_offered_one(slots: int, load: float):
    for seed in range(20):
        rate = load * CAPACITY
        measured = measure(serve(rate, 400, seed, slots), rate)
        found = requests_per_s(measured.throughput_tokens_per_s)
        assert not measured.saturated
        assert found == pytest.approx(rate, rel=0.03)
        assert measured.achieved == pytest.approx(rate, rel=0.04)


@pytest.mark.parametrize('slots', [1, 8])
@pytest.mark.parametrize(
    ('load', 'n', 'lowest', 'highest'),
    [
        # 1 - 1 / 1.1 = 9 % of the requests pile up.
        (0.9, 400, 0.0, 0.05),
        (1.1, 400, 0.85, 1.0),
        # Short points know less, see the docstring of `measure`.
        (0.8, 120, 0.0, 0.02),
        (0.9, 120, 0.0, 0.12),
        (1.1, 120, 0.7, 1.0),
        (0.8, 48, 0.0, 0.12),
        (1.2, 48, 0.75, 1.0),
    ],
)
def test_share_of_points_that_are_marked(
    slots: int,
    load: float,
    n: int,
    lowest: float,
    highest: float,
):
    rate = load * CAPACITY
    marked = [
        measure(serve(rate, n, seed, slots), rate).saturated
        for seed in range(100)
    ]
    assert lowest <= np.mean(marked) <= highest


@pytest.mark.parametrize('slots', [1, 8])
@pytest.mark.parametrize('seed', range(5))
def test_search_finds_the_capacity_within_a_step(slots: int, seed: int):
    rates = Rates(step=0.2, start=0.2, stop=4.0, fine=1)
    saturated: dict[float, bool] = {}

    def is_saturated(rate: float) -> bool:
        timings = serve(rate, 600, seed, slots)
        saturated[rate] = measure(timings, rate).saturated
        return saturated[rate]

    search(rates, is_saturated)
    below, above = knee(rates, saturated)
    assert below is not None
    assert above is not None
    assert below <= CAPACITY + 1e-9
    assert above >= CAPACITY - 1e-9
    assert above - below <= 0.2 + 1e-9


def test_results_are_plain_json():
    content = measure(serve(1.0, 40, 0), 1.0).to_json()
    assert list(content) == [
        'offered',
        'achieved',
        'throughput_tokens_per_s',
        'latency_mean_s',
        'in_flight_slope',
        'saturated',
        'steady_from_s',
        'window',
    ]
    assert {type(value) for value in content.values()} == {float, bool, list}
