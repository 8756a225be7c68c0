"""How a dense feed-forward layer becomes experts; one file a recipe."""

from typing import Any, Mapping

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.recipes.base import Recipe
from foundry_upcycle.recipes.copy import copy

__all__ = ['RECIPES', 'get_recipe']

RECIPES: dict[str, Recipe] = {'copy': copy}


def get_recipe(config: Mapping[str, Any]) -> Recipe:
    """The recipe that ``config`` names.

    Raises:
        ConfigError: There is no such recipe, or it has no such setting.
    """
    settings = dict(config)
    name = settings.pop('name')
    if not isinstance(name, str) or name not in RECIPES:
        raise ConfigError(
            'callbacks.sparse_upcycling.recipe.name',
            name,
            'there is no such recipe.',
            f'use one of {sorted(RECIPES)}.',
        )
    if settings:
        key, value = next(iter(settings.items()))
        raise ConfigError(
            f'callbacks.sparse_upcycling.recipe.{key}',
            value,
            f'the recipe {name} has no such setting.',
            'remove it.',
        )
    return RECIPES[name]
