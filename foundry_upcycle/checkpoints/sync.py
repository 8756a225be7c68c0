"""Errors that stop all ranks, not one of them."""

from contextlib import contextmanager
from typing import Iterator

from composer.utils import dist

from foundry_upcycle.errors import CheckpointError

__all__ = ['raise_together']


@contextmanager
def raise_together() -> Iterator[None]:
    """Raises on every rank when the body raised on any.

    Otherwise the others would wait for the failed one at the next collective
    until it times out. The body must not use collectives after it can fail.

    Raises:
        CheckpointError: The body raised on another rank only.
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    messages = dist.all_gather_object(None if error is None else str(error))
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise CheckpointError(
                f'rank {rank}',
                message,
                'see the log of that rank.',
            )
