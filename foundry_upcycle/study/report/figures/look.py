"""What all figures of a report share: colours, markers, legends, files."""

from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Optional, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from foundry_upcycle.figures import COLORS, MARKERS
from foundry_upcycle.study.config import ModelGrid
from foundry_upcycle.study.report.summary import Summary

__all__ = [
    'BEHIND',
    'DENSE',
    'Drawing',
    'Look',
    'Scene',
    'tidy',
]

# Of the dense start.
DENSE = '#444444'
_UNKNOWN = '#888888'
_LINES = ('-', '--', ':', '-.')
# How the paper's points are drawn behind a study's.
BEHIND: Mapping[str, Any] = {
    'alpha': 0.35,
    'zorder': 1,
    'linewidth': 1.2,
    'markersize': 4,
}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of the report.

    Args:
        name: Of its files, without the ending.
        title: What it shows, in a few words.
        caption: How to read it.
        figure: To be written.
    """

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Look:
    """One colour for each arm and one marker and line for each duration.

    Args:
        colors: Arm -> colour, everywhere in the report.
        markers: Duration -> marker.
        lines: Duration -> style of the line.
    """

    colors: Mapping[str, str]
    markers: Mapping[str, str]
    lines: Mapping[str, str]

    @classmethod
    def of(cls, summary: Summary) -> 'Look':
        arms = dict.fromkeys(a for m in summary.models for a in m.arms)
        durations = dict.fromkeys(
            duration for m in summary.models for duration in m.durations
        )
        return cls(
            _cycle(arms, COLORS),
            _cycle(durations, MARKERS),
            _cycle(durations, _LINES),
        )

    def style(self, arm: Optional[str], duration: str) -> dict[str, Any]:
        """How the points of an arm, or of no particular one, are drawn."""
        return {
            'color': self.colors[arm] if arm else _UNKNOWN,
            'marker': self.markers[duration],
            'linestyle': self.lines[duration],
        }

    def arm_handles(self, arms: Iterable[str]) -> list[Line2D]:
        """A legend's entries of arms."""
        return [
            Line2D([], [], color=self.colors[arm], linewidth=4, label=arm)
            for arm in arms
        ]

    def duration_handles(self, durations: Iterable[str]) -> list[Line2D]:
        """A legend's entries of durations."""
        return [
            Line2D([], [],
                   **{
                       **self.style(None, duration), 'color': 'black'
                   },
                   label=f'pretraining: {duration}') for duration in durations
        ]


@dataclass(frozen=True, eq=False)
class Scene:
    """What is drawn.

    Args:
        summary: Of the study.
        look: Of its report.
        model: Whose arms are drawn.
    """

    summary: Summary
    look: Look
    model: ModelGrid

    def paper_arm(self, arm: str) -> Optional[str]:
        """Whose colour an arm of the paper has; None where there is none.

        Args:
            arm: ``cpt`` or ``upcycled``.
        """
        if arm == 'cpt':
            return self.summary.reference(self.model)
        dense = self.summary.dense_arms[self.model.name]
        return next((a for a in self.model.arms if a not in dense), None)

    def durations(self) -> tuple[str, ...]:
        """Those of which an arm has a result."""
        return tuple(
            duration for duration in self.model.durations
            if self.begun(duration)
        )

    def begun(self, duration: str) -> tuple[str, ...]:
        """The arms that have a result."""
        return tuple(
            arm for arm in self.model.arms
            if self.summary.points(self.model, duration, arm)
        )


def _cycle(names: Mapping[str, Any], values: Sequence[str]) -> dict[str, str]:
    return {
        name: values[index % len(values)]
        for index, name in enumerate(names)
    }


def tidy(axes: Axes) -> None:
    """Takes off what is not needed."""
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
