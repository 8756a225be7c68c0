"""Auxiliary losses against computations that share no code with them."""

import math

import torch

from foundry_upcycle.models.losses import load_balancing_loss, router_z_loss
from foundry_upcycle.models.router import Router, RouterOutput


def make_routings(n_layers: int, T: int, E: int, K: int) -> list[RouterOutput]:
    torch.manual_seed(0)
    x = torch.randn(T, 16)
    return [Router(16, E, K)(x) for _ in range(n_layers)]


def test_load_balancing_loss_is_megablocks_formula():
    n_layers, T, E, K, weight = 3, 50, 6, 2, 0.01
    routings = make_routings(n_layers, T, E, K)
    # megablocks.layers.moe.batched_load_balancing_loss, in plain Python:
    # concatenate over layers, then scale * dot(tokens, mean scores) with
    # scale = E * weight / (num_layers * tokens * top_k).
    counts, mean_scores = [], []
    for routing in routings:
        chosen = routing.top_experts_TK.flatten().tolist()
        scores = routing.scores_TE.tolist()
        for e in range(E):
            counts.append(chosen.count(e))
            mean_scores.append(math.fsum(row[e] for row in scores) / T)
    scale = E * weight / (n_layers * T * K)
    expected = scale * math.fsum(c * s for c, s in zip(counts, mean_scores))
    assert sum(counts) == n_layers * T * K  # No token was dropped.
    loss = load_balancing_loss(routings, weight)
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)


def test_perfect_balance_gives_the_weight():
    E, T = 4, 8
    logits = torch.zeros(T, E)
    routing = RouterOutput(
        scores_TE=logits.softmax(-1),
        expert_weights_TK=torch.ones(T, 1),
        top_experts_TK=torch.arange(T).remainder(E)[:, None],
        logits_TE=logits,
        tokens_per_expert_E=torch.full((E, ), T // E),
    )
    # E * w / (T * K) * sum over E of (T / E) * (1 / E) = w
    loss = load_balancing_loss([routing], 0.01)
    assert math.isclose(loss.item(), 0.01, rel_tol=1e-6)


def test_collapse_costs_up_to_the_number_of_experts():
    E, T = 4, 8
    logits = torch.tensor([50.0, 0, 0, 0]).expand(T, E)
    routing = RouterOutput(
        scores_TE=logits.softmax(-1),
        expert_weights_TK=torch.ones(T, 1),
        top_experts_TK=torch.zeros(T, 1, dtype=torch.long),
        logits_TE=logits,
        tokens_per_expert_E=torch.tensor([T, 0, 0, 0]),
    )
    # E * w / (T * K) * T * 1 = E * w
    loss = load_balancing_loss([routing], 0.01)
    assert math.isclose(loss.item(), 0.04, rel_tol=1e-6)


def test_z_loss_is_the_mean_squared_logsumexp():
    routings = make_routings(2, 20, 5, 2)
    values = [
        math.log(math.fsum(math.exp(z)
                           for z in row))**2
        for routing in routings
        for row in routing.logits_TE.tolist()
    ]
    expected = 0.1 * math.fsum(values) / len(values)
    loss = router_z_loss(routings, 0.1)
    assert math.isclose(loss.item(), expected, rel_tol=1e-5)


def test_both_losses_train_the_router():
    torch.manual_seed(0)
    router = Router(16, 4, 2)
    routing = router(torch.randn(30, 16))
    for loss in (load_balancing_loss, router_z_loss):
        router.zero_grad()
        loss([routing], 1.0).backward(retain_graph=True)
        assert router.layer.weight.grad.abs().sum() > 0
