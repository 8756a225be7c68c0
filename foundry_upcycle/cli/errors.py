"""Errors, as a command shows them."""

import os
import warnings
from contextlib import contextmanager
from typing import Any, Iterator

import typer

from foundry_upcycle.errors import (
    CheckpointError,
    ConfigError,
    TaskDataError,
    UpcyclingWarning,
)

__all__ = ['errors_in_one_line']


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the command with 1 and one line for what the user can mend."""

    def show(message: Any, *_: Any, **__: Any) -> None:
        typer.echo(f'warning: {message}', err=True)

    # transformers complains of MPT's own rope settings.
    os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
    with warnings.catch_warnings():
        # Those of the host stack are not for this user.
        warnings.simplefilter('ignore')
        warnings.simplefilter('always', UpcyclingWarning)
        warnings.showwarning = show
        try:
            yield
        except (CheckpointError, ConfigError, TaskDataError) as error:
            typer.echo(f'error: {error}', err=True)
            raise typer.Exit(1) from error
