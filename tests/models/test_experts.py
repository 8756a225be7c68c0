"""The layer against its definition and against independent ones.

Shape suffixes: T tokens, D d_model, F expert hidden, E experts.
"""

from functools import partial

import pytest
import torch
from llmfoundry.models.layers.dmoe import dMoE
from models.backends import FAST
from torch.nn import functional as F
from transformers.models.mixtral.configuration_mixtral import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from foundry_upcycle.models.dispatch import (
    dispatch_by_expert,
    from_experts,
    to_experts,
)
from foundry_upcycle.models.experts import init_experts
from foundry_upcycle.models.ffn import UpcycledDMoE, build_upcycled_dmoe
from foundry_upcycle.models.grouped import ffn_one_by_one

D, HIDDEN = 24, 40


def make_layer(
    backend: str = 'grouped',
    E: int = 6,
    K: int = 2,
    mlp_type: str = 'glu',
    **kwargs,
) -> UpcycledDMoE:
    layer = build_upcycled_dmoe(
        d_model=D,
        expansion_ratio=4,
        ffn_hidden_size=HIDDEN,
        ffn_act_fn={'name': 'silu'},
        bias=False,
        moe_num_experts=E,
        moe_top_k=K,
        mlp_type=mlp_type,
        moe_loss_weight=0,  # No model is there to add the loss.
        backend=backend,
        **kwargs,
    )
    generator = torch.Generator().manual_seed(E * 100 + K)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return layer


def make_tokens(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, D, generator=generator)


def run_step(layer: torch.nn.Module, x: torch.Tensor, parameters) -> list:
    """Output, input gradient, and parameters after one optimizer step."""
    x = x.clone().requires_grad_()
    out = layer(x)
    out = out[0] if isinstance(out, tuple) else out
    out.square().sum().backward()
    torch.optim.SGD(parameters, lr=0.01).step()
    return [out.detach(), x.grad, *(p.detach() for p in parameters)]


def assert_close(first: list, second: list, atol: float = 2e-5) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


@pytest.mark.parametrize('backend', FAST)
@pytest.mark.parametrize('mlp_type', ['glu', 'mlp'])
@pytest.mark.parametrize('E,K', [(6, 2), (6, 1), (1, 1), (3, 3), (8, 4)])
def test_a_backend_equals_loop(E: int, K: int, mlp_type: str, backend: str):
    x = make_tokens(2, 17)
    results = []
    for name in (backend, 'loop'):
        layer = make_layer(name, E, K, mlp_type)
        results.append(run_step(layer, x, list(layer.parameters())))
    assert_close(*results)


@pytest.mark.parametrize('backend', FAST)
def test_an_expert_without_tokens_has_gradient_zero(backend: str):
    layer = make_layer(backend, E=8, K=1)
    x = make_tokens(3)  # Three tokens leave at least five experts without.
    counts = layer.router(x).tokens_per_expert_E
    layer(x).sum().backward()
    for name in ('w1', 'v1', 'w2'):
        grads_E = getattr(layer.experts.mlp, name).grad.view(8, -1)
        assert torch.equal(grads_E.abs().sum(1) > 0, counts > 0)


@pytest.mark.parametrize('normalize', [None, 1, 2])
@pytest.mark.parametrize('mlp_type', ['glu', 'mlp'])
def test_equals_foundrys_torch_dmoe(mlp_type: str, normalize):
    ours = make_layer(
        mlp_type=mlp_type,
        moe_normalize_expert_weights=normalize,
    )
    theirs = dMoE(
        device=None,
        hidden_size=D,
        ffn_hidden_size=HIDDEN,
        moe_num_experts=6,
        moe_top_k=2,
        mlp_type=mlp_type,
        activation_fn=F.silu,
        moe_normalize_expert_weights=normalize,
    )
    # The same names and layout: a checkpoint moves between them unchanged.
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = make_tokens(2, 17)
    names = [name for name, _ in ours.named_parameters()]
    results = [
        run_step(layer, x, [layer.get_parameter(n)
                            for n in names])
        for layer in (ours, theirs)
    ]
    assert_close(*results)


def test_equals_hugging_faces_mixtral_block():
    E = 6
    ours = make_layer(E=E)
    theirs = MixtralSparseMoeBlock(
        MixtralConfig(
            hidden_size=D,
            intermediate_size=HIDDEN,
            num_local_experts=E,
            num_experts_per_tok=2,
            hidden_act='silu',
        ),
    )
    mlp = ours.experts.mlp
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.layer.weight)
        for e, expert in enumerate(theirs.experts):
            expert.w1.weight.copy_(mlp.weight_EFD('w1')[e])
            expert.w3.weight.copy_(mlp.weight_EFD('v1')[e])
            expert.w2.weight.copy_(mlp.weight_EFD('w2')[e].t())
    x = make_tokens(2, 17)
    results = [
        run_step(layer, x, list(layer.parameters()))
        for layer in (ours, theirs)
    ]
    # Outputs and input gradients directly; parameters after the step in our
    # layout.
    assert_close(results[0][:2], results[1][:2])
    stacked = {
        'w1': torch.cat([e.w1.weight for e in theirs.experts]),
        'v1': torch.cat([e.w3.weight for e in theirs.experts]),
        'w2': torch.cat([e.w2.weight.t() for e in theirs.experts]),
    }
    assert_close(
        [mlp.w1, mlp.v1, mlp.w2, ours.router.layer.weight],
        [*stacked.values(), theirs.gate.weight],
    )


def test_gradients_of_the_experts_one_by_one():
    sizes = torch.tensor([3, 0, 4, 1])
    x = torch.randn(8, 5, dtype=torch.double, requires_grad=True)
    weights = [
        torch.randn(4, 6, 5, dtype=torch.double, requires_grad=True)
        for _ in range(3)
    ]
    assert torch.autograd.gradcheck(
        lambda x, *weights: ffn_one_by_one(
            lambda gate, up: F.silu(gate) * up,
            x,
            weights,
            sizes,
        ),
        (x, *weights),
    )


def test_gradients_of_the_way_to_experts_and_back():
    dispatch = dispatch_by_expert(torch.tensor([[2, 0], [0, 1], [0, 2]]))
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    y = torch.randn(6, 4, dtype=torch.double, requires_grad=True)
    weights = torch.rand(3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(partial(to_experts, dispatch=dispatch), x)
    assert torch.autograd.gradcheck(
        partial(from_experts, dispatch=dispatch),
        (y, weights),
    )


@pytest.mark.parametrize('backend', FAST)
def test_a_backend_is_as_exact_as_bfloat16(backend: str):
    x = make_tokens(64)
    exact, layer = make_layer('loop').double(), make_layer(backend).bfloat16()
    # The same routes: nothing is decided by rounding.
    layer.router.float()
    layer.router.layer.weight.data.copy_(exact.router.layer.weight)
    x_16 = x.bfloat16()
    results = []
    for each, tokens in ((layer, x_16), (exact, x_16.double())):
        tokens = tokens.clone().requires_grad_()
        out = each(tokens)
        out.sum().backward()
        results.append((out, tokens.grad, each.experts.mlp.w2.grad))
    for ours, wanted in zip(*results, strict=True):
        error = (ours - wanted).norm() / wanted.norm()
        assert error < 0.01


def test_autocast_runs_experts_in_bfloat16_and_the_router_in_float32():
    layer = make_layer()
    x = make_tokens(64)
    with torch.autocast('cpu', torch.bfloat16):
        routing = layer.router(x)
        out = layer(x)
    assert routing.scores_TE.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert torch.equal(routing.top_experts_TK, layer.router(x).top_experts_TK)
    torch.testing.assert_close(out.float(), layer(x), atol=0.3, rtol=0.05)
    out.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_jitter_is_noise_in_training_only():
    layer = make_layer(moe_jitter_eps=0.5)
    x = make_tokens(64)
    layer.eval()
    assert torch.equal(layer.router(x).logits_TE, layer.router(x).logits_TE)
    layer.train()
    torch.manual_seed(0)
    noisy = layer.router(x).logits_TE
    torch.manual_seed(0)
    # The noise is uniform on [1 - eps, 1 + eps] and multiplies the tokens.
    noise = torch.rand_like(x) + 0.5
    expected = F.linear(x * noise, layer.router.layer.weight)
    torch.testing.assert_close(noisy, expected)


def test_experts_are_initialised_as_the_dense_layer():
    layer = make_layer(E=4)
    calls = []

    def init(weight: torch.Tensor) -> None:
        calls.append(tuple(weight.shape))
        with torch.no_grad():
            weight.fill_(8.0)

    did = init_experts(
        layer.experts.mlp,
        init_fn_=init,
        init_div_is_residual=True,
        div_is_residual=4.0,
        d_model=D,
    )
    assert did
    # w1, v1: as gate and up (F, D); w2: as down (D, F), a residual layer.
    assert calls == [(HIDDEN, D)] * 8 + [(D, HIDDEN)] * 4
    assert layer.experts.mlp.v1.eq(8.0).all()
    assert layer.experts.mlp.w2.eq(2.0).all()


def test_foreign_modules_are_left_to_foundry():
    linear = torch.nn.Linear(2, 2)
    assert not init_experts(
        linear,
        init_fn_=torch.nn.init.zeros_,
        init_div_is_residual=True,
        div_is_residual=1.0,
    )
