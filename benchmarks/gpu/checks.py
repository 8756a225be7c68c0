"""Errors beside the tolerances that they may not pass."""

from typing import Any, Iterable

import torch

__all__ = ['check', 'distance', 'record_of']


def check(what: str, error: float, tolerance: float) -> dict[str, Any]:
    return {'what': what, 'error': error, 'tolerance': tolerance}


def record_of(checks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A case's record, an ``error`` of its own where one is too large."""
    checks = list(checks)
    # Not `>`: nan is an error, too.
    wrong = [c for c in checks if not c['error'] <= c['tolerance']]
    record: dict[str, Any] = {'checks': checks}
    if wrong:
        record['error'] = 'beyond tolerance: ' + ', '.join(
            f"{c['what']} {c['error']:.1e}" for c in wrong
        )
    return record


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, of the largest value expected."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()
