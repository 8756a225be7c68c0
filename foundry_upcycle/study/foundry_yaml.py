"""Reads the YAMLs that a study names, which are LLM Foundry's."""

import math
from pathlib import Path
from typing import Any, Mapping, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundry_upcycle.documents import DocumentError, read_config
from foundry_upcycle.errors import ConfigError

__all__ = ['merged', 'own_variables', 'select', 'select_any', 'unresolved']


def merged(
    key: str,
    path: Path,
    variables: Mapping[str, Any],
    overrides: Mapping[str, Any],
    kind: str,
    sections: Sequence[str],
) -> DictConfig:
    """A YAML with what a study changes in it, unresolved.

    Args:
        key: Of the YAML in the study YAML.
        path: The YAML.
        variables: Replace those of the same name.
        overrides: Replace the YAML's settings, nested as there.
        kind: What is asked for, such as ``a train YAML``.
        sections: Keys that are mappings, where they are there.

    Raises:
        ConfigError: It can't be read, or a section is something else.
    """
    problem, cause = 'it is not a mapping of keys to values.', None
    try:
        changes = [{'variables': dict(variables)}, dict(overrides)]
        config = OmegaConf.merge(read_config(path), *changes)
    except DocumentError as error:
        problem, cause = str(error), error
    # OmegaConf raises what its parts do.
    except Exception as error:
        problem, cause = f"it can't be read ({error}).", error
    else:
        if isinstance(config, DictConfig):
            for section in sections:
                if select_any(path, config, section) is not None:
                    select(path, config, section, DictConfig)
            return config
    raise ConfigError(
        key,
        str(path),
        problem,
        f'name {kind} of LLM Foundry.',
    ) from cause


def own_variables(path: Path) -> frozenset[str]:
    """Names below the ``variables`` of a YAML that can be merged.

    Raises:
        ConfigError: They are no mapping, whatever replaces them.
    """
    config, key = read_config(path), 'variables'
    if select_any(path, config, key) is None:
        return frozenset()
    return frozenset(map(str, select(path, config, key, DictConfig)))


def select(path: Path, config: Any, key: str, kind: Any) -> Any:
    """A setting that must be there, of a type.

    Raises:
        ConfigError: It is not, or is a number that is not finite.
    """
    value = select_any(path, config, key)
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(
            f'{path}: {key}',
            value,
            'it is missing, or of another type than Foundry has there.',
            'write it as a train YAML of LLM Foundry has it.',
        )
    return value


def select_any(path: Path, config: Any, key: str) -> Any:
    """A setting, or None.

    Raises:
        ConfigError: It leads nowhere.
    """
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise unresolved(path, key, error) from error


def unresolved(path: Path, key: str, error: Exception) -> ConfigError:
    """What to raise where a value leads nowhere."""
    return ConfigError(
        f'{path}: {key}',
        None,
        f"it can't be resolved ({str(error).splitlines()[0]}).",
        'write its value, here or in overrides.',
    )
