"""What a study measures of its servers: points, each with its id."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Iterator, Mapping, Optional, Sequence

from benchmarks.inference.point_format import POINT_FORMAT
from benchmarks.inference.study.servers import ServerSpec, id_of
from benchmarks.inference.study.settings import Study

__all__ = ['Point', 'points_of', 'rounds']

# Of an unbounded rate, at the least.
_BATCHES = 3


@dataclass(frozen=True)
class Point:
    """One rate of one server, in one run.

    Args:
        server: What serves.
        rate: Requests/s; None: all at once.
        run: From 0.

    Attributes:
        format: Of its record.
        folder: Of the study's, where records are.
        file: In a folder of its id, its record.
    """

    format: ClassVar[str] = POINT_FORMAT
    folder: ClassVar[str] = 'points'
    file: ClassVar[str] = 'point.json'

    server: ServerSpec
    rate: Optional[float]
    run: int

    @property
    def n_requests(self) -> int:
        """Requests that are measured.

        The workload's ``requests``, or as many as arrive in its ``seconds``
        where that is more. Unbounded, ``requests`` in whole batches, and three
        of them: requests of one length that come at once start and end
        together, the first batch starts on an empty server, and a last one that
        is not full has another mix of prompts and answers.
        """
        workload = self.server.size.workload
        if self.rate is None:
            batch = self.server.engine['max_num_seqs']
            n_batches = math.ceil(workload.requests / batch)
            return max(n_batches, _BATCHES) * batch
        # Not one more for the sake of 120.00000000000001.
        arriving = math.ceil(self.rate * workload.seconds - 1e-6)
        return max(workload.requests, arriving)

    @property
    def seconds_of_arrivals(self) -> float:
        """For how long requests arrive; 0 where all come at once."""
        return 0.0 if self.rate is None else self.n_requests / self.rate

    @property
    def config(self) -> dict[str, Any]:
        """All that it is measured with."""
        workload = self.server.size.workload
        return {
            **self.server.config,
            'rate': self.rate,
            'run': self.run,
            'workload': {
                'input_tokens': workload.input_tokens,
                'output_tokens': workload.output_tokens,
                'requests': self.n_requests,
                'warmup_requests': workload.warmup_requests,
                'prompts': self.server.prompts,
                # Where it is not set, ids are as before there was such a key.
                **({
                    'greedy': True
                } if workload.greedy else {}),
            },
        }

    @cached_property
    def id(self) -> str:
        return id_of(self.config)

    @property
    def label(self) -> str:
        """In words, such as ``430m dense base 0.4/s run 1``."""
        rate = 'unbounded' if self.rate is None else f'{self.rate:g}/s'
        return f'{self.server.label} {rate} run {self.run + 1}'

    def outcome(self, record: Mapping[str, Any]) -> str:
        """What its record says, in words."""
        measured = record['measured']
        state = 'saturated' if measured['saturated'] else 'keeps up'
        return (
            f"{measured['throughput_tokens_per_s']:,.0f} tokens/s, latency "
            f"{measured['latency_mean_s']:.2f} s, {state}"
        )


def points_of(
    server: ServerSpec,
    rates: Sequence[Optional[float]],
    runs: Sequence[int],
) -> tuple[Point, ...]:
    """Points of a server, run by run in the order of rates."""
    return tuple(Point(server, rate, run) for run in runs for rate in rates)


def rounds(
    study: Study,
    servers: Sequence[ServerSpec],
) -> Iterator[tuple[ServerSpec, int]]:
    """Servers and runs in the order of measuring.

    Within a size, run by run and variant by variant, dense and mixtures one
    after another, and backwards in every second run: what changes on the
    machine over time meets all of them alike.
    """
    for size in study.sizes:
        of_size = [
            server for server in servers if server.size.name == size.name
        ]
        for run in range(study.runs):
            for server in of_size if run % 2 == 0 else reversed(of_size):
                yield server, run
