"""What tests of served models share."""

from pathlib import Path
from typing import Any, Callable

import torch

__all__ = ['PYTHON', 'continued', 'make_distinct']

# Of vLLM's environment.
PYTHON = Path(__file__).parents[1] / '.venv-vllm' / 'bin' / 'python'


def make_distinct(model: Any) -> Any:
    """Gives a model random experts that differ, and routers that choose."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            std = 1.0 if 'router' in name else 0.1
            parameter.add_(torch.randn_like(parameter) * std)
    return model


def continued(
    logits: Callable[[torch.Tensor], torch.Tensor],
    prompt: list[int],
    n: int,
) -> list[int]:
    """The n tokens that greedy decoding appends."""
    ids = [*prompt]
    for _ in range(n):
        ids.append(int(logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt):]
