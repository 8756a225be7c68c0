"""The eval YAML of a study, of which each run gets its own."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Optional

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.gauntlets import (
    Gauntlet,
    parse_gauntlet,
    read_gauntlet,
)
from foundry_upcycle.study.foundry_yaml import (
    merged,
    own_variables,
    select_any,
    unresolved,
)

__all__ = ['EvaluationYaml']

# What is a mapping, where it is there.
_SECTIONS = ('variables', 'callbacks', 'callbacks.icl_results', 'loggers')


@dataclass(frozen=True, eq=False)
class EvaluationYaml:
    """What a study measures after each run.

    Args:
        path: The YAML.
        config: Its content, unresolved. Its models are replaced.
        held_out_texts: Labels of the texts that it measures a loss on.
        variables: Names below its ``variables``, which a study may replace.
    """

    path: Path
    config: DictConfig
    held_out_texts: frozenset[str]
    variables: frozenset[str]

    @classmethod
    def read(
        cls,
        path: Path,
        variables: Mapping[str, Any],
    ) -> 'EvaluationYaml':
        """Reads the YAML.

        Args:
            path: The YAML.
            variables: Replace those of the same name.

        Raises:
            ConfigError: It can't be read, has no tasks, or a held-out text
                without a label.
        """
        config = merged(
            'evaluation',
            path,
            variables,
            {},
            'an eval YAML',
            _SECTIONS,
        )
        labels = _labels(path, config)
        tasks = select_any(path, config, 'icl_tasks')
        if tasks is None:
            raise ConfigError(
                f'{path}: icl_tasks',
                None,
                "Foundry's eval needs tasks.",
                'name an eval YAML with icl_tasks.',
            )
        if 'eval_loader' in config:
            raise ConfigError(
                f'{path}: eval_loader',
                str(config.eval_loader),
                'a study needs the label of each held-out text.',
                'write eval_loaders, a list of loaders with labels.',
            )
        return cls(
            path,
            config,
            labels,
            own_variables(path),
        )

    @cached_property
    def gauntlet(self) -> Optional[Gauntlet]:
        """How tasks are scored; None: only their accuracies are known.

        Raises:
            ConfigError: Its YAML can't be read.
        """
        key = 'eval_gauntlet'
        value = select_any(self.path, self.config, key)
        if value is None:
            return None
        if isinstance(value, str):
            return read_gauntlet(value)
        try:
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException as error:
            raise unresolved(self.path, error.full_key or key, error) from error
        return parse_gauntlet(f'{self.path}: {key}', {key: value})


def _labels(path: Path, config: DictConfig) -> frozenset[str]:
    loaders = select_any(path, config, 'eval_loaders')
    if loaders is None:
        return frozenset()
    if not isinstance(loaders, ListConfig):
        raise ConfigError(
            f'{path}: eval_loaders',
            str(loaders),
            'it is not a list.',
            'write a list of loaders, each with a label.',
        )
    labels = []
    for index in range(len(loaders)):
        key = f'eval_loaders[{index}].label'
        label = select_any(path, config, key)
        if label is None:
            raise ConfigError(
                f'{path}: {key}',
                label,
                'a study needs the label of each held-out text.',
                'give the loader a label.',
            )
        labels.append(str(label))
    return frozenset(labels)
