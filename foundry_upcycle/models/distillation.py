"""How far a student's predictions are from a teacher's.

Shape suffixes: T tokens, V vocabulary.
"""

from typing import Any

import torch

__all__ = ['mean_divergence']

# Probabilities that are in memory at a time, for each of the two models.
_CHUNK = 1 << 24


def mean_divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    is_counted: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Mean KL(teacher || student) of tokens, in nats.

    Both distributions are softened: softmax of logits / temperature (Hinton et
    al., arXiv 1503.02531). They are computed in float32, some tokens at a time,
    and the gradient with them, in the dtype of the student's logits: nothing
    else of that size is kept.

    Args:
        student: Logits (..., V), which get a gradient.
        teacher: Logits (..., V).
        is_counted: Of which tokens the mean is, (...); of none it is 0.
        temperature: Divides the logits.

    Returns:
        A scalar.
    """
    V = student.shape[-1]
    mean: Any = _MeanDivergence.apply(
        student.reshape(-1, V),
        teacher.reshape(-1, V),
        is_counted.reshape(-1),
        temperature,
    )
    return mean


class _MeanDivergence(torch.autograd.Function):

    @staticmethod
    def forward(
        ctx: Any,
        student_TV: torch.Tensor,
        teacher_TV: torch.Tensor,
        is_counted_T: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        share_T = is_counted_T.float() / is_counted_T.sum().clamp(min=1)
        gradient_TV = torch.empty_like(student_TV)
        mean = share_T.new_zeros(())
        n_tokens = max(1, _CHUNK // student_TV.shape[-1])
        chunks: Any = zip(
            student_TV.split(n_tokens),
            teacher_TV.split(n_tokens),
            share_T.split(n_tokens),
            gradient_TV.split(n_tokens),
        )
        for student, teacher, share, gradient in chunks:
            log_q, log_p = (
                torch.log_softmax(logits.float() / temperature, dim=-1)
                for logits in (student, teacher)
            )
            p = log_p.exp()
            mean += share.dot((p * (log_p - log_q)).sum(dim=-1))
            # Of a token's divergence by its logits: (q - p) / temperature.
            gradient.copy_((log_q.exp() - p) * (share / temperature)[:, None])
        ctx.save_for_backward(gradient_TV)
        return mean

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (gradient_TV, ) = ctx.saved_tensors
        return gradient_TV * grad.to(gradient_TV.dtype), None, None, None
