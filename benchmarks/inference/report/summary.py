"""A study's points, put in order: sizes, what is served, rates, runs."""

from functools import cached_property
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence

from benchmarks.inference.report.consistency import check_points
from benchmarks.inference.report.estimates import Estimate, mean_of
from benchmarks.inference.report.records import BASE, Arm, Measured, Point

__all__ = ['DENSE', 'Summary']

DENSE = Arm(1, 1)


class Summary:
    """What a study has measured.

    Args:
        points: Of its folder.

    Raises:
        HarnessError: They can't be compared.
    """

    def __init__(self, points: Sequence[Point]):
        check_points(points)
        self.points = tuple(points)
        self.done = tuple(p for p in points if p.status == 'done')
        self._runs: dict[Any, dict[int, Point]] = {}
        for point in sorted(self.done, key=lambda point: point.run):
            place = point.size, point.arm, point.rate
            self._runs.setdefault(place, {})[point.run] = point

    @property
    def study(self) -> str:
        return self.points[0].study

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What to know of all that is shown; of all points if none is done."""
        points = self.done or self.points
        return tuple(dict.fromkeys(x for p in points for x in p.labels))

    @property
    def labelled(self) -> str:
        """The labels as text in brackets after a space; empty if none."""
        return f" ({', '.join(self.labels)})" if self.labels else ''

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """That have a result, from small to large by what weights take."""
        return tuple(
            sorted(
                dict.fromkeys(point.size for point in self.done),
                key=lambda size: (self._weights(size), size),
            ),
        )

    def _weights(self, size: str) -> float:
        on_devices = (
            p.devices * (p.engine.get('weight_bytes') or 0)
            for p in self.of_size(size)
        )
        return min((w for w in on_devices if w), default=0.0)

    def of_size(self, size: str) -> tuple[Point, ...]:
        """What is done of a size."""
        return tuple(point for point in self.done if point.size == size)

    def devices(self, size: str, arm: Arm) -> int:
        """Over how many an arm that has a result is spread."""
        return next(p.devices for p in self.of_size(size) if p.arm == arm)

    @cached_property
    def devices_differ(self) -> bool:
        """Whether not all that is done is spread over as many devices."""
        return len({point.devices for point in self.done}) > 1

    def arms(self, size: str, variant: str = BASE) -> tuple[Arm, ...]:
        """That have a result: dense, then by experts and top-k."""
        found = {point.arm for point in self.of_size(size)}
        return tuple(sorted(arm for arm in found if arm.variant == variant))

    def mixtures(self, size: str) -> tuple[Arm, ...]:
        """Of ``arms``, those that are not dense."""
        return tuple(arm for arm in self.arms(size) if not arm.is_dense)

    def others(self, size: str) -> tuple[Arm, ...]:
        """Of ``arms``, those of other models than the size's own."""
        return tuple(arm for arm in self.arms(size) if arm.name)

    def variants(self, size: str) -> tuple[Arm, ...]:
        """All arms of a size that have a result and are not as the study."""
        found = {point.arm for point in self.of_size(size)}
        return tuple(
            sorted(
                (arm for arm in found if arm.variant != BASE),
                key=lambda arm: (arm.variant, arm),
            ),
        )

    def name(self, size: str, arm: Arm) -> str:
        """Of an arm, for a legend; experts only where sizes differ in them."""
        if arm.is_dense:
            name = arm.name or 'dense'
        else:
            arms = {p.arm for p in self.points if p.size == size}
            numbers = {a.experts for a in arms if not a.is_dense and not a.name}
            name = f'K={arm.top_k}'
            if len(numbers) > 1 and not arm.name:
                name = f'{arm.experts} experts, {name}'
            if arm.name:
                name = f'{arm.name}, {name}'
        return name if arm.variant == BASE else f'{name}, {arm.variant}'

    def runs(
        self,
        size: str,
        arm: Arm,
        rate: Optional[float],
    ) -> Mapping[int, Point]:
        """Run -> what is done at a rate, None being unbounded."""
        return self._runs.get((size, arm, rate), {})

    def rates(self, size: str, arm: Arm) -> tuple[float, ...]:
        """Rates that have a result, ascending, without the unbounded one."""
        return tuple(
            sorted(
                rate for of_size, of, rate in self._runs
                if (of_size, of) == (size, arm) and rate is not None
            ),
        )

    def values(
        self,
        size: str,
        arm: Arm,
        rate: Optional[float],
        take: Callable[[Measured], Optional[float]],
    ) -> dict[int, float]:
        """Run -> what was measured, of runs that have it."""
        found = {}
        for run, point in self.runs(size, arm, rate).items():
            value = None if point.measured is None else take(point.measured)
            if value is not None:
                found[run] = value
        return found

    def mean(
        self,
        size: str,
        arm: Arm,
        rate: Optional[float],
        take: Callable[[Measured], Optional[float]],
    ) -> Optional[Estimate]:
        """Of ``values``; None where there are none."""
        return mean_of(list(self.values(size, arm, rate, take).values()))

    def is_saturated(self, size: str, arm: Arm, rate: float) -> bool:
        """Whether the server fell behind in any run."""
        return any(
            point.measured.saturated
            for point in self.runs(size, arm, rate).values()
            if point.measured
        )

    def keeping_up(self, size: str, arms: Iterable[Arm]) -> tuple[float, ...]:
        """Rates that all arms were measured at without saturation."""
        sets = [{
            rate
            for rate in self.rates(size, arm)
            if not self.is_saturated(size, arm, rate)
        }
                for arm in arms]
        return tuple(sorted(set.intersection(*sets))) if sets else ()
