"""Refuses variables that come to nothing."""

from typing import Any, Iterator, Mapping

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.run_yamls import eval_yaml, train_yaml

__all__ = ['require_variables_used']

# The value of a variable of which is asked where it arrives.
_MARK = '<marked>'


def require_variables_used(grid: Grid) -> None:
    """Checks that what a study sets among variables changes a run.

    A YAML may use one in what the study sets itself, such as ``load_path``,
    and nowhere else.

    Raises:
        ConfigError: It changes none.
    """
    configs = {key: OmegaConf.create(text) for key, text in _texts(grid)}
    for name, value in grid.study.variables.items():
        if not any(_uses(config, name) for config in configs.values()):
            raise _unused(f'variables.{name}', value)
    for base in {run.base.key: run.base for run in grid.trainings}.values():
        for name, value in _mapping(base.phase.overrides.get('variables')):
            if not _uses(configs[base.key], name):
                raise _unused(f'{base.key}.overrides.variables.{name}', value)


def _texts(grid: Grid) -> Iterator[tuple[str, str]]:
    """One of each phase, and one evaluation."""
    of_phase = {run.base.key: run for run in reversed(grid.trainings)}
    for key, run in of_phase.items():
        rates = run.base.phase.learning_rates
        source = grid.candidates(run.source)[0] if run.source else None
        yield key, train_yaml(grid, run, rates[0] if rates else None, source)
    if grid.evaluation is not None:
        yield 'evaluation', eval_yaml(grid, grid.evaluation, grid.runs[0])


def _mapping(value: Any) -> Any:
    return value.items() if isinstance(value, Mapping) else ()


def _uses(config: Any, name: str) -> bool:
    """Whether another value of a variable would make another run."""
    marked: DictConfig = config.copy()
    if OmegaConf.select(marked, 'variables') is None:
        return False
    marked.variables[name] = _MARK
    try:
        resolved: Any = OmegaConf.to_container(marked, resolve=True)
    except OmegaConfBaseException:
        return True  # It is not a text, or another can't be resolved.
    del resolved['variables']
    return _MARK in str(resolved)


def _unused(key: str, value: Any) -> ConfigError:
    return ConfigError(
        key,
        value,
        'it comes to nothing: what uses it, if anything does, the study sets '
        'itself.',
        'remove it; the study YAML says where a run starts, how long it is, '
        'and where it saves and logs.',
    )
