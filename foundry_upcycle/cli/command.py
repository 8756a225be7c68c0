"""What all commands have in common."""

from typing import Any, Callable, Optional, TypeVar

import typer
from typer.core import TyperCommand

from foundry_upcycle.cli.errors import errors_in_one_line
from foundry_upcycle.errors import ConfigError

__all__ = ['App', 'numbers']

_Number = TypeVar('_Number', int, float)


class _Command(TyperCommand):

    def invoke(self, ctx: Any) -> Any:
        with errors_in_one_line():
            for parameter in self.params:
                _refuse_empty(parameter, ctx.params.get(parameter.name))
        return super().invoke(ctx)


class App(typer.Typer):
    """Commands that refuse empty values.

    A script gives one where a variable of its is not set. As a path it would
    be the working folder to some, and nothing to others.
    """

    def command(
        self,
        name: Optional[str] = None,
        **settings: Any,
    ) -> Callable[..., Any]:
        return super().command(name, **{'cls': _Command, **settings})


def _refuse_empty(parameter: Any, value: Any) -> None:
    values = value if isinstance(value, (list, tuple)) else [value]
    if '' not in values:
        return
    if parameter.param_type_name == 'option':
        name, fix = parameter.opts[0], 'give it a value, or leave it out.'
    else:
        name, fix = parameter.metavar or parameter.name, 'give it a value.'
    raise ConfigError(name, '', 'it is empty.', fix)


def numbers(
    key: str,
    text: str,
    kind: type[_Number],
    fix: str,
) -> list[_Number]:
    """A list of numbers that is written with commas.

    Args:
        key: The option.
        text: Its value.
        kind: Of the numbers.
        fix: Ends the error.

    Raises:
        ConfigError: One is no such number.
    """
    try:
        return [kind(part) for part in text.split(',')]
    except ValueError as error:
        name = 'whole numbers' if kind is int else 'numbers'
        raise ConfigError(
            key,
            text,
            f'it is not a list of {name}.',
            fix,
        ) from error
