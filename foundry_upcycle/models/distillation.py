"""How far a student's predictions are from a teacher's.

Shape suffixes: T tokens, V vocabulary.
"""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ['mean_divergence']

# Probabilities that are in memory at a time, for each of the two models.
_CHUNK = 1 << 25


def mean_divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    is_counted: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Mean KL(teacher || student) of tokens, in nats.

    Both distributions are softened: softmax of logits / temperature (Hinton et
    al., arXiv 1503.02531). They are computed in float32, some tokens at a time,
    and again in backward, so that memory is of those tokens and not of all.

    Args:
        student: Logits (..., V), which get a gradient.
        teacher: Logits (..., V).
        is_counted: Of which tokens the mean is, (...); of none it is 0.
        temperature: Divides the logits.

    Returns:
        A scalar.
    """
    V = student.shape[-1]
    n_tokens = max(1, _CHUNK // V)
    chunks = (
        logits.reshape(-1, V).split(n_tokens) for logits in (student, teacher)
    )
    divergences: list[Any] = [
        checkpoint(_divergence, *pair, temperature, use_reentrant=False)
        for pair in zip(*chunks)
    ]
    divergence_T = torch.cat(divergences)
    is_counted_T = is_counted.reshape(-1)
    return divergence_T[is_counted_T].sum() / is_counted_T.sum().clamp(min=1)


def _divergence(
    student_TV: torch.Tensor,
    teacher_TV: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    log_q, log_p = (
        torch.log_softmax(logits.float() / temperature, dim=-1)
        for logits in (student_TV, teacher_TV)
    )
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
