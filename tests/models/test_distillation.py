import pytest
import torch
from torch.nn.functional import kl_div

from foundry_upcycle.models import distillation
from foundry_upcycle.models.distillation import mean_divergence


@pytest.mark.parametrize('chunk', [1, 7 * 3, 1 << 25])
def test_is_torchs_of_the_counted_tokens(monkeypatch, chunk: int):
    monkeypatch.setattr(distillation, '_CHUNK', chunk)
    student = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    is_counted = torch.rand(2, 5) < 0.6
    expected = kl_div(
        (student[is_counted] / 2).log_softmax(-1),
        (teacher[is_counted] / 2).log_softmax(-1),
        log_target=True,
        reduction='batchmean',
    )
    found = mean_divergence(student, teacher, is_counted, 2.0)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    gradients = (
        torch.autograd.grad(each, student)[0] for each in (found, expected)
    )
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_keeps_one_gradient_for_backward():
    student = torch.randn(5, 7, requires_grad=True)
    counted = torch.ones(5, dtype=torch.bool)
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mean_divergence(student, torch.randn(5, 7), counted, 1.0)
    assert kept == [35]


def test_of_no_token_it_is_0():
    student = torch.randn(1, 3, 7, requires_grad=True)
    found = mean_divergence(
        student,
        torch.randn(1, 3, 7),
        torch.zeros(1, 3, dtype=torch.bool),
        1.0,
    )
    found.backward()
    assert found == 0 and torch.all(student.grad == 0)
