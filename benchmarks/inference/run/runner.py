"""Measures what a study still needs, one server after another."""

import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Protocol

from benchmarks.inference.errors import HarnessError, SlowClientError
from benchmarks.inference.run.schedule import Schedule
from benchmarks.inference.run.store import Item, Store
from benchmarks.inference.study.points import rounds
from benchmarks.inference.study.servers import ServerSpec, list_servers
from benchmarks.inference.study.settings import Study

__all__ = ['Backend', 'Runner', 'Serving']


class Serving(Protocol):
    """A server that answers."""

    start_seconds: float

    def measure(self, item: Item, folder: Path) -> Mapping[str, Any]:
        """Measures a point, or asks a probe.

        Args:
            item: One of the server.
            folder: For the tool's output and logs.

        Returns:
            ``engine``, ``requests``, ``tool``, ``measured``, ``counters`` and
            ``expert_load`` of point.json; ``engine`` and ``quality`` of
            quality.json.

        Raises:
            HarnessError: It can't be measured, or not to be relied on.
        """
        ...

    def check_alive(self) -> None:
        """Raises HarnessError where the server is dead."""
        ...


class Backend(Protocol):
    """What starts servers."""

    machine: Mapping[str, Any]

    def labels(self, server: ServerSpec) -> list[str]:
        """What to know of its numbers, such as ``dummy weights``."""
        ...

    def unavailable(self, server: ServerSpec) -> Optional[str]:
        """Why this machine can't run it; None: it can."""
        ...

    def serve(
        self,
        server: ServerSpec,
        run: int,
    ) -> AbstractContextManager[Serving]:
        """A server for one run, ended with the block.

        Raises:
            HarnessError: It doesn't start.
        """
        ...


class Runner:
    """Runs a study. Run again, it goes on where it was.

    What is done is never measured again; what failed is tried again; what was
    skipped stays so until the machine can run it. A point that fails since the
    client was slow, which passes, is tried once more at once.

    Args:
        study: The study.
        backend: Starts servers.
        full_grid: Whether all rates are measured, without a search.
        say: Shows a line.
    """

    def __init__(
        self,
        study: Study,
        backend: Backend,
        full_grid: bool = False,
        say: Callable[[str], None] = print,
    ):
        self.backend = backend
        self.say = say
        self.store = Store(study.folder)
        servers = list_servers(study)
        self.schedule = Schedule(study, servers, self.store, full_grid)
        self.rounds = tuple(rounds(study, servers))
        self._attempted: set[str] = set()
        self._slow: set[str] = set()
        self._serves: Optional[tuple[ServerSpec, int]] = None
        self._pace = _Pace()

    def run(self) -> bool:
        """Measures all points; a failure stops no other.

        Returns:
            Whether none remains: all are done, or skipped with a reason.

        Raises:
            HarnessError: Another runner works on the folder, or it has points
                of another study or machine, or that can't be read.
        """
        with self.store.exclusive():
            for removed in self.store.keep_only(self.schedule.all_ids()):
                self.say(f'{removed}: removed: not done, of other settings')
            self.store.check_machine(self.backend.machine)
            for done in self._items('done'):
                self._pace.add(done, self.store.record(done) or {})
            for server, run in self.rounds:
                self._round(server, run)
            return self._summarise()

    def _round(self, server: ServerSpec, run: int) -> None:
        """All that is left of one server in one run."""
        reason = self.backend.unavailable(server)
        if reason is not None:
            for point in self._pending(server, run):
                self._write(point, 'skipped', reason)
            return
        while self._next(server, run) is not None:
            # Once, or again where a server died under its load.
            try:
                with self.backend.serve(server, run) as serving:
                    self._serve(serving, server, run)
            except Exception as error:
                # Also what nobody thought of: the other servers still run.
                for point in self._pending(server, run):
                    if point.id not in self._attempted:
                        self._fail(point, error)

    def _serve(self, serving: Serving, server: ServerSpec, run: int) -> None:
        self.say(
            f'{server.label} run {run + 1}: serves after '
            f'{serving.start_seconds:.0f} s',
        )
        self._pace.starts.append(serving.start_seconds)
        self._serves = server, run
        while (point := self._next(server, run)) is not None:
            started = time.monotonic()
            try:
                content = serving.measure(
                    point,
                    self.store.folder_of(point),
                )
            except Exception as error:
                is_slow = isinstance(error, SlowClientError)
                if is_slow and point.id not in self._slow:
                    self._slow.add(point.id)
                    self.say(f'{point.label}: once more: {error}')
                    continue
                self._attempted.add(point.id)
                try:
                    # What killed the server says more than a lost connection.
                    serving.check_alive()
                except HarnessError as death:
                    return self._fail(point, death)
                self._fail(point, error)
                continue
            seconds = time.monotonic() - started
            self._done(point, {**content, 'seconds': seconds})

    def _done(self, item: Item, content: Mapping[str, Any]) -> None:
        self._write(item, 'done', None, content)
        self._pace.add(item, content)
        self.say(
            f'{item.label}: {item.outcome(content)}; '
            f"{content['seconds']:.0f} s, {self._left()}",
        )

    def _fail(self, item: Item, error: Exception) -> None:
        self._attempted.add(item.id)
        reason = _describe(error)
        self._write(item, 'failed', reason)
        self.say(f'{item.label}: failed: {reason}')

    def _write(
        self,
        item: Item,
        status: str,
        reason: Optional[str],
        content: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self.store.write(
            item,
            status,
            reason,
            {
                'machine': self.backend.machine,
                'labels': self.backend.labels(item.server),
                **(content or {}),
            },
        )

    def _pending(self, server: ServerSpec, run: int) -> tuple[Item, ...]:
        """Known points and probes that aren't done."""
        return tuple(
            item for item in self.schedule.items(server, run)
            if self.store.status(item) != 'done'
        )

    def _next(self, server: ServerSpec, run: int) -> Optional[Item]:
        """The next that this runner hasn't tried."""
        for point in self._pending(server, run):
            if point.id not in self._attempted:
                return point
        return None

    def _items(self, status: Optional[str]) -> Iterator[Item]:
        for server, run in self.rounds:
            for item in self.schedule.items(server, run):
                if self.store.status(item) == status:
                    yield item

    def _left(self) -> str:
        """How long is left, in words, as far as it can be estimated."""
        points, n_unknown, n_servers = [], 0.0, 0
        for server, run in self.rounds:
            if self.backend.unavailable(server) is not None:
                continue
            pending = [
                point for point in self._pending(server, run)
                if point.id not in self._attempted
            ]
            unknown = sum(self.schedule.unknown(server, run)) / 2
            points += pending
            n_unknown += unknown
            starts = self._serves != (server, run)
            n_servers += bool(starts and (pending or unknown))
        seconds = self._pace.left(points, n_unknown, n_servers)
        return f'about {_minutes(seconds)} left' if points else 'the last'

    def _summarise(self) -> bool:
        for item in self._items('skipped'):
            reason = (self.store.record(item) or {})['reason']
            self.say(f'{item.label}: skipped: {reason}')
        remaining = [*self._items('failed'), *self._items(None)]
        for item in remaining:
            record = self.store.record(item)
            reason = 'not measured' if record is None else record['reason']
            # The first line: all of it was said before, and is in the record.
            self.say(f'{item.label}: remains: {reason.splitlines()[0]}')
        n_done = len(list(self._items('done')))
        self.say(f'{n_done} points done, {len(remaining)} remain')
        return not remaining


def _describe(error: Exception) -> str:
    """What went wrong; where, if nobody thought of it."""
    if isinstance(error, HarnessError):
        return str(error)
    return f'{error!r}\n' + ''.join(traceback.format_exception(error))


class _Pace:
    """Estimates time from what was measured: a point takes the time in which
    its requests arrive, and one for everything else.
    """

    def __init__(self):
        self.starts: list[float] = []
        self._whole: list[float] = []
        self._extra: list[float] = []

    def add(self, item: Item, record: Mapping[str, Any]) -> None:
        """Counts what took ``seconds``."""
        seconds = record['seconds']
        self._whole.append(seconds)
        self._extra.append(max(seconds - item.seconds_of_arrivals, 0.0))

    def left(
        self,
        points: list[Item],
        n_unknown: float,
        n_servers: int,
    ) -> float:
        """Seconds for points, some of which aren't known yet, and servers."""
        known = sum(point.seconds_of_arrivals for point in points)
        return (
            known + len(points) * _mean(self._extra) +
            n_unknown * _mean(self._whole) + n_servers * _mean(self.starts)
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _minutes(seconds: float) -> str:
    if seconds < 100:
        return f'{seconds:.0f} s'
    if seconds < 6000:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h'
