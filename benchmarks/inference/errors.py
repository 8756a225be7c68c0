"""What the harness raises for bad input and for processes that failed."""

from typing import Any

__all__ = ['HarnessError', 'SlowClientError']


class HarnessError(ValueError):
    """What keeps a point from being measured.

    Args:
        key: The setting's full name, as it is written in a study, or what was
            run.
        value: The value found.
        problem: Why it can't be used, or what went wrong.
        fix: What to do.
    """

    def __init__(self, key: str, value: Any, problem: str, fix: str):
        super().__init__(f'{key}={value!r}: {problem} Fix: {fix}')


class SlowClientError(HarnessError):
    """The client fell behind its schedule, as beside another busy process."""
