"""Errors, as a command shows them."""

import errno
import os
import sys
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
from foundry_upcycle.files import fix_for, reason_of

__all__ = ['errors_in_one_line']

_SURROGATES = frozenset(map(chr, range(0xDC80, 0xDD00)))


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
            _require_usable_names()
            yield
        except (CheckpointError, ConfigError, TaskDataError) as error:
            typer.echo(f'error: {error}', err=True)
            raise typer.Exit(1) from error
        except OSError as error:
            # A reader of our output that goes is click's to deal with.
            if error.errno == errno.EPIPE:
                raise
            message = f'error: {reason_of(error)}. Fix: {fix_for(error)}'
            typer.echo(message, err=True)
            raise typer.Exit(1) from error


def _require_usable_names() -> None:
    """Refuses what no path can be made of, or none that can be written down."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            'working folder',
            os.environ.get('PWD', '.'),
            'it is gone.',
            'change to a folder that is there.',
        ) from error
    for text in sys.argv[1:]:
        # Bytes that are not UTF-8 are surrogates here.
        if not _SURROGATES.isdisjoint(text):
            raise ConfigError(
                'argument',
                text,
                'it is not UTF-8, so no YAML and no page can name it.',
                'rename it.',
            )
