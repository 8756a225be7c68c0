"""What is measured of a run: losses, and the gauntlet's average."""

from dataclasses import dataclass, replace
from typing import Literal, Optional, Sequence

from foundry_upcycle.gauntlet.gauntlets import Gauntlet
from foundry_upcycle.gauntlet.intervals import ROUNDING, Ends
from foundry_upcycle.gauntlet.results import ModelResults, Part
from foundry_upcycle.gauntlet.scores import Scores, compare, score
from foundry_upcycle.study.results import RunResult, StudyResults

__all__ = [
    'Mean', 'Metric', 'Quality', 'Verdict', 'loss_metrics', 'pool_answers',
    'read_loss'
]

_FINAL_LOSS = 'final_loss'
_HELD_OUT = 'held_out/'
_LOSS_UNIT = 'nats per token'
_CORE = 'core_average'

Verdict = Literal['better', 'worse', 'not told apart', 'no interval']


@dataclass(frozen=True)
class Metric:
    """Something that is measured of a run.

    Args:
        key: ``final_loss``, ``held_out/TEXT``, or the gauntlet's average.
        title: What tables and figures call it.
        unit: Of its values; empty for a score.
        higher_is_better: Whether it is.
    """

    key: str
    title: str
    unit: str = _LOSS_UNIT
    higher_is_better: bool = False

    @property
    def is_held_out(self) -> bool:
        return self.key.startswith(_HELD_OUT)

    @property
    def label(self) -> str:
        """For the axis of a plot."""
        return f'{self.title} ({self.unit})' if self.unit else self.title


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, of values or of differences.

    Args:
        value: The mean.
        interval: Of 95 %, if there is one.
        over: What the interval is over: ``seeds``, ``examples`` or ``seeds and
            examples``; empty where there is none.
        n_seeds: How many seeds it is a mean of.
    """

    value: float
    interval: Optional[Ends]
    over: str
    n_seeds: int

    def verdict(self, metric: Metric) -> Verdict:
        """Of a difference: what can be told at 95 %."""
        if self.interval is None:
            return 'no interval'
        low, high = self.interval
        if low <= ROUNDING and high >= -ROUNDING:
            return 'not told apart'
        return 'better' if (low > 0) == metric.higher_is_better else 'worse'


def loss_metrics(study: StudyResults) -> tuple[Metric, ...]:
    """The losses that any finished run has: training's, then held-out texts'."""
    texts = {
        text
        for result in study.by_place.values() if result.evaluation
        for text in result.evaluation.losses
    }
    return (
        Metric(_FINAL_LOSS, 'final training loss'),
        *(
            Metric(f'{_HELD_OUT}{text}', f'loss on held-out {text}')
            for text in sorted(texts)
        ),
    )


def read_loss(metric: Metric, result: RunResult) -> Optional[float]:
    """A loss of a run, in nats a token; None where it was not measured."""
    if metric.key == _FINAL_LOSS:
        if result.run.serves is not None:
            return None  # It is of another K.
        return result.final_loss if len(result.train_loss) else None
    losses = result.evaluation.losses if result.evaluation else {}
    return losses.get(metric.key.removeprefix(_HELD_OUT))


class Quality:
    """Scores runs by an average of the gauntlet: the Core Average, if it has.

    Args:
        gauntlet: Of the tasks that all runs were asked.
        average: Its average.
    """

    def __init__(self, gauntlet: Gauntlet, average: str):
        self.gauntlet = gauntlet
        title = average.replace('_', ' ').title()
        self.metric = Metric(average, title, '', higher_is_better=True)
        self._values: dict[str, float] = {}
        self._intervals: dict[tuple[str, str], Optional[Ends]] = {}

    @classmethod
    def of(cls, study: StudyResults) -> Optional['Quality']:
        """None where no tasks were asked, or the runs have none in common.

        A task that some evaluated run lacks, or has in other categories, is
        left out for all, so that all averages are over the same.
        """
        gauntlet = study.gauntlet
        answers = [
            tasks.tasks
            for result in study.by_place.values()
            if (tasks := _answers_of(result)) is not None
        ]
        if gauntlet is None or not answers:
            return None
        shared = gauntlet.restricted([
            task for task, parts in answers[0].items() if all(
                other.get(task, {}).keys() == parts.keys() for other in answers
            )
        ])
        averages = [name for name, of in shared.averages.items() if of]
        if not averages:
            return None
        return cls(shared, _CORE if _CORE in averages else averages[0])

    def value(self, result: RunResult) -> Optional[float]:
        """The average of a run; None where it was not asked."""
        tasks = _answers_of(result)
        if tasks is None:
            return None
        name = result.run.name
        if name not in self._values:
            # It needs no bootstrap.
            scores = score(tasks, self.gauntlet, n_replicates=1)
            self._values[name] = scores.averages[self.metric.key].value
        return self._values[name]

    def scores(self, tasks: ModelResults) -> Scores:
        """Of all tasks, with intervals over examples."""
        return score(tasks, self.gauntlet)

    def interval(self, tasks: ModelResults) -> Optional[Ends]:
        """Of the average, over examples."""
        return self.scores(tasks).averages[self.metric.key].interval

    def interval_of_difference(
        self,
        pairs: Sequence[tuple[RunResult, RunResult]],
    ) -> Optional[Ends]:
        """Over examples, by how much runs exceed others.

        Of several pairs the mean of their intervals, which is as wide as if all
        erred on the same examples: the cautious end. None where one has none.
        """
        intervals = [self._interval_of_difference(*pair) for pair in pairs]
        known = [ends for ends in intervals if ends is not None]
        if not known or len(known) < len(intervals):
            return None
        lows, highs = zip(*known)
        return sum(lows) / len(lows), sum(highs) / len(highs)

    def _interval_of_difference(
        self,
        result: RunResult,
        base: RunResult,
    ) -> Optional[Ends]:
        tasks, base_tasks = _answers_of(result), _answers_of(base)
        if tasks is None or base_tasks is None:
            return None
        names = result.run.name, base.run.name
        if names not in self._intervals:
            changes = compare(tasks, base_tasks, self.gauntlet).averages
            self._intervals[names] = changes[self.metric.key].interval
        return self._intervals[names]


def _answers_of(result: RunResult) -> Optional[ModelResults]:
    """What a run answered, if it was asked."""
    return result.evaluation.tasks if result.evaluation else None


def pool_answers(results: Sequence[RunResult]) -> Optional[ModelResults]:
    """The mean accuracies of several seeds, as one model's results.

    Its numbers of examples are those of one seed: all are asked the same, so
    more seeds are no more examples. Intervals are then as if the seeds erred on
    the same ones, which is the cautious end.

    Args:
        results: Of the seeds.

    Returns:
        Of the tasks that all have in the same categories. None where none was
        asked.
    """
    answers = [a for a in map(_answers_of, results) if a is not None]
    if len(answers) < 2:
        return answers[0] if answers else None
    pooled = {}
    for task, parts in answers[0].tasks.items():
        of_seeds = [a.tasks.get(task, {}) for a in answers]
        if all(of.keys() == parts.keys() for of in of_seeds):
            pooled[task] = {
                label: _mean_part([of[label]
                                   for of in of_seeds])
                for label in parts
            }
    return replace(answers[0], tasks=pooled)


def _mean_part(parts: Sequence[Part]) -> Part:
    counts = {part.n for part in parts}
    return Part(
        parts[0].metric,
        sum(part.accuracy for part in parts) / len(parts),
        counts.pop() if len(counts) == 1 else None,
    )
