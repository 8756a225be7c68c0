"""Which points a study needs, as far as that is known."""

from typing import Optional, Sequence

from benchmarks.inference.run.store import Item, Store
from benchmarks.inference.study.points import Point, points_of
from benchmarks.inference.study.probes import Probe, list_probes
from benchmarks.inference.study.search import number_of_rates, replay
from benchmarks.inference.study.servers import ServerSpec
from benchmarks.inference.study.settings import Study

__all__ = ['Schedule']


class Schedule:
    """Points of a study by what was measured so far.

    The first run of a server searches its rates; the other runs have the same.

    Args:
        study: The study.
        servers: Its servers.
        store: What was measured.
        full_grid: Whether all rates are measured, without a search.
    """

    def __init__(
        self,
        study: Study,
        servers: Sequence[ServerSpec],
        store: Store,
        full_grid: bool = False,
    ):
        self.study = study
        self.servers = tuple(servers)
        self.store = store
        self.full_grid = full_grid
        self._probes = list_probes(self.servers)
        # Kept, as hashing their ids takes a while.
        self._grids = {
            server: points_of(server, server.size.rates.grid, (0, ))
            for server in servers
        }

    def points(self, server: ServerSpec, run: int) -> tuple[Point, ...]:
        """Points that are known to be needed; more may be."""
        rates, is_complete = self._rates(server)
        if run > 0 and not is_complete:
            # Whether the other runs need it is known when the first has it.
            rates = rates[:-1]
        return points_of(server, (*rates, *_unbounded(server)), (run, ))

    def probes(self, server: ServerSpec, run: int) -> tuple[Probe, ...]:
        """What asks for quality: once, in the first run, after its points."""
        return tuple(
            probe for probe in self._probes
            if run == 0 and probe.server == server
        )

    def items(self, server: ServerSpec, run: int) -> tuple[Item, ...]:
        """``points``, then ``probes``."""
        return (*self.points(server, run), *self.probes(server, run))

    def unknown(self, server: ServerSpec, run: int) -> tuple[int, int]:
        """How many more points there may be, at the least and at the most."""
        rates, is_complete = self._rates(server)
        if is_complete:
            return 0, 0
        known = len(rates) - (run > 0)
        low, high = number_of_rates(server.size.rates)
        return max(low - known, 0), max(high - known, 0)

    def all_ids(self) -> set[str]:
        """Of each point and probe that the study may ever have."""
        return {probe.id
                for probe in self._probes} | {
                    point.id
                    for server in self.servers
                    for point in points_of(
                        server,
                        (*server.size.rates.grid, *_possible_unbounded(server)),
                        range(self.study.runs),
                    )
                }

    def _rates(self, server: ServerSpec) -> tuple[tuple[float, ...], bool]:
        """Rates without the unbounded one; whether these are all."""
        grid = server.size.rates.grid
        if self.full_grid:
            return grid, True
        measured = {}
        for point in self._grids[server]:
            record = self.store.record(point)
            if record is not None and record['status'] == 'done':
                measured[point.rate] = record['measured']['saturated']
        return replay(server.size.rates, measured)


def _possible_unbounded(server: ServerSpec) -> tuple[Optional[float], ...]:
    """Also where the study has turned it off; batches have a size then."""
    return () if server.engine['max_num_seqs'] is None else (None, )


def _unbounded(server: ServerSpec) -> tuple[Optional[float], ...]:
    return (None, ) if server.size.rates.unbounded else ()
