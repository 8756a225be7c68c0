"""Which tasks an Eval Gauntlet scores, and how it averages them."""

import os
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Container, Mapping

from foundry_upcycle.config import is_whole
from foundry_upcycle.documents import DocumentError, read_yaml
from foundry_upcycle.errors import ConfigError

__all__ = [
    'FOLDER',
    'Benchmark',
    'Gauntlet',
    'announce_left_out',
    'parse_gauntlet',
    'read_gauntlet',
]

_PACKAGE = Path(__file__).parents[1]
# Beside the package in a checkout, inside it where it is installed.
FOLDER = next(
    folder / 'eval_gauntlet'
    for folder in (_PACKAGE, _PACKAGE.parent)
    if (folder / 'eval_gauntlet').is_dir()
)
# What every gauntlet here and every released one uses, and Foundry's defaults.
# Foundry can also weigh by size and leave accuracies as they are.
_SCORING = {
    'weighting': 'EQUAL',
    'subtract_random_baseline': True,
    'rescale_accuracy': True,
}


@dataclass(frozen=True)
class Benchmark:
    """A task as a gauntlet counts it.

    Args:
        name: Label of the task.
        num_fewshot: Solved examples in each prompt.
        random_baseline: Accuracy of guessing.
    """

    name: str
    num_fewshot: int
    random_baseline: float

    @property
    def label(self) -> str:
        """What Foundry calls it in metrics, such as ``copa/0-shot``."""
        return f'{self.name}/{self.num_fewshot}-shot'

    def score(self, accuracy: float) -> float:
        """Accuracy above chance, 1 at the most."""
        return (accuracy - self.random_baseline) / (1 - self.random_baseline)


@dataclass(frozen=True)
class Gauntlet:
    """Tasks, by category.

    Args:
        name: What to call it.
        categories: Category -> its tasks. A category's score is the mean of
            their scores.
        averages: Average -> the categories of whose scores it is the mean.
        left_out: Tasks that it would have, were their results or files there.
        left_out_categories: Categories of which these are all tasks.
        scoring: Foundry's settings of how tasks are weighed.
    """

    name: str
    categories: Mapping[str, tuple[Benchmark, ...]]
    averages: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()
    left_out_categories: tuple[str, ...] = ()
    scoring: Mapping[str, Any] = field(default_factory=lambda: dict(_SCORING))

    @property
    def benchmarks(self) -> tuple[Benchmark, ...]:
        """Every task once."""
        return tuple(
            dict.fromkeys(
                benchmark for category in self.categories.values()
                for benchmark in category
            ),
        )

    def restricted(self, labels: Container[str]) -> 'Gauntlet':
        """The same gauntlet, of those tasks that ``labels`` has.

        A category without tasks is none, neither for Foundry's averages, to
        which it would give a 0.
        """
        categories = {
            name: tuple(b
                        for b in benchmarks
                        if b.label in labels)
            for name, benchmarks in self.categories.items()
        }
        empty = (name for name, of in categories.items() if not of)
        left_out_categories = (*self.left_out_categories, *empty)
        categories = {name: of for name, of in categories.items() if of}
        gone = (b.label for b in self.benchmarks if b.label not in labels)
        return Gauntlet(
            self.name,
            categories,
            {
                average: tuple(name
                               for name in names
                               if name in categories)
                for average, names in self.averages.items()
            },
            (*self.left_out, *gone),
            left_out_categories,
            self.scoring,
        )

    def say_left_out(self) -> str:
        """Tasks that are left out, and categories that are therefore gone."""
        tasks = ', '.join(self.left_out)
        if not self.left_out_categories:
            return f'{tasks}.'
        categories = ', '.join(self.left_out_categories)
        return f'{tasks}. No task is left of {categories}.'

    def require_scoring(self) -> None:
        """Checks that tasks weigh the same, above chance.

        Raises:
            ConfigError: It is otherwise, which only Foundry computes.
        """
        for key, only in _SCORING.items():
            if self.scoring[key] != only:
                raise ConfigError(
                    f'{self.name}: eval_gauntlet.{key}',
                    self.scoring[key],
                    'scores are computed by equal weights, above chance.',
                    f'write {key}: {only}.',
                )

    def to_yaml(self) -> dict[str, Any]:
        """What ``read_gauntlet`` and Foundry read."""
        return {
            'eval_gauntlet': {
                **self.scoring,
                'averages': {
                    average: list(names)
                    for average, names in self.averages.items()
                },
                'categories': [{
                    'name': name,
                    'benchmarks': [asdict(b) for b in benchmarks],
                } for name, benchmarks in self.categories.items()],
            },
            'left_out': list(self.left_out),
            'left_out_categories': list(self.left_out_categories),
        }


def read_gauntlet(path: str | Path) -> Gauntlet:
    """Reads a YAML as Foundry's ``eval_gauntlet`` takes it.

    Args:
        path: The file, or the name of one in ``eval_gauntlet/`` of this
            project, such as ``paper`` or ``v0.3``.

    Raises:
        ConfigError: There is no such file, or it is not a gauntlet.
    """
    path = Path(path)
    own = FOLDER / f'{path}.yaml'
    # Where a name is too long for any file, it is none.
    if not os.path.isfile(path) and os.path.isfile(own):
        path = own
    try:
        content = read_yaml(path)
    except DocumentError as error:
        names = sorted(
            file.stem
            for file in FOLDER.glob('*.yaml')
            if not file.stem.endswith('_tasks')
        )
        raise ConfigError(
            'eval_gauntlet',
            str(path),
            str(error),
            f"name one of {', '.join(names)}, or a YAML, such as paper.yaml in "
            'the folder that `foundry-upcycle gauntlet prepare` made.',
        ) from error
    return parse_gauntlet(str(path), content)


@cache
def announce_left_out(path: str) -> None:
    """Prints, once, which tasks a prepared gauntlet lacks; on rank 0.

    Args:
        path: The gauntlet's YAML.

    Raises:
        ConfigError: It can't be read.
    """
    gauntlet = read_gauntlet(path)
    if not gauntlet.left_out or os.environ.get('RANK', '0') != '0':
        return
    n_scored = len(gauntlet.benchmarks)
    print(
        f'eval_gauntlet {gauntlet.name}: left out, as their files were missing, '
        f'damaged or not as released: {gauntlet.say_left_out()} '
        f"{', '.join(gauntlet.averages)} is over the other {n_scored} of "
        f'{n_scored + len(gauntlet.left_out)} tasks.',
        flush=True,
    )


def parse_gauntlet(path: str, content: Any) -> Gauntlet:
    """Checks the content of a gauntlet's YAML.

    Args:
        path: Where it stands; its stem is the gauntlet's name.
        content: With the key ``eval_gauntlet``.

    Raises:
        ConfigError: See ``read_gauntlet``.
    """
    try:
        settings = content['eval_gauntlet']
        listed = [(
            _text(category['name']),
            tuple(map(_benchmark, category['benchmarks'])),
        ) for category in settings['categories']]
        averages = {
            _text(average): _names(names)
            for average, names in (settings.get('averages') or {}).items()
        }
        left_out, left_out_categories = (
            _names(content.get(key) or [])
            for key in ('left_out', 'left_out_categories')
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            'eval_gauntlet',
            path,
            f'it is not a gauntlet: {type(error).__name__} {error}.',
            'write it as eval_gauntlet/paper.yaml is: categories with name and '
            'benchmarks, each with name, num_fewshot and random_baseline; and '
            'averages, each a list of categories.',
        ) from error
    categories = dict(listed)
    if len(categories) < len(listed):
        raise ConfigError(
            'eval_gauntlet.categories',
            [name for name, _ in listed],
            'two have the same name.',
            'give each a name of its own.',
        )
    _check_baselines(categories)
    for average, names in averages.items():
        for name in names:
            if name not in categories:
                raise ConfigError(
                    f'eval_gauntlet.averages.{average}',
                    name,
                    'there is no such category.',
                    f"take of {', '.join(categories)}.",
                )
    if not averages:
        averages = {'default_average': tuple(categories)}  # As Foundry's.
    scoring = {key: settings.get(key, only) for key, only in _SCORING.items()}
    return Gauntlet(
        Path(path).stem,
        categories,
        averages,
        left_out,
        left_out_categories,
        scoring,
    )


def _benchmark(settings: Any) -> Benchmark:
    num_fewshot = settings['num_fewshot']
    if not is_whole(num_fewshot):
        raise TypeError(f'num_fewshot: {num_fewshot!r} is no whole number')
    return Benchmark(
        _text(settings['name']),
        num_fewshot,
        float(settings['random_baseline']),
    )


def _names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise TypeError(f'{names!r} is not a list')
    return tuple(map(_text, names))


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f'{name!r} is not a text; write it in quotes')
    return name


def _check_baselines(categories: Mapping[str, tuple[Benchmark, ...]], ) -> None:
    baselines: dict[str, float] = {}
    for benchmark in (b for of in categories.values() for b in of):
        value = benchmark.random_baseline
        first = baselines.setdefault(benchmark.label, value)
        if first != value or not 0 <= value < 1:
            raise ConfigError(
                f'eval_gauntlet: {benchmark.label}.random_baseline',
                value,
                'it is not from 0 to below 1, or not what another category '
                f'has ({first}).',
                'give the accuracy of guessing, once the same everywhere.',
            )
