"""The same models in plain PyTorch, and a loop that trains them.

Written as one would without Foundry and Composer, from torch's own parts;
parameters have MPT's names, so that its weights fit (the mixture's experts
apart, which are a list here).

Dimension legend: B sequences, S tokens each, D d_model, H heads, G key-value
heads, C channels of a head, E experts.
"""

from typing import Any, Callable

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ['PlainModel', 'train']


class _Attention(nn.Module):

    def __init__(self, config: Any):
        super().__init__()
        D, self.H = config.d_model, config.n_heads
        self.G = config.attn_config.kv_n_heads
        self.C = D // self.H
        self.Wqkv = nn.Linear(D, (self.H + 2 * self.G) * self.C, bias=False)
        self.out_proj = nn.Linear(D, D, bias=False)

    def forward(self, x_BSD: torch.Tensor, rope: Any) -> torch.Tensor:
        heads = self.Wqkv(x_BSD).unflatten(-1, (-1, self.C)).transpose(1, 2)
        q, k, v = heads.split((self.H, self.G, self.G), dim=1)
        q, k = _rotated(q, *rope), _rotated(k, *rope)
        k, v = (x.repeat_interleave(self.H // self.G, dim=1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).flatten(2))


def _rotated(
    x_BHSC: torch.Tensor,
    cos_SC: torch.Tensor,
    sin_SC: torch.Tensor,
) -> torch.Tensor:
    first, second = x_BHSC.chunk(2, dim=-1)
    return x_BHSC * cos_SC + torch.cat((-second, first), dim=-1) * sin_SC


class _GLU(nn.Module):

    def __init__(self, D: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(D, hidden, bias=False)
        self.up_proj = nn.Linear(D, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Mixture(nn.Module):
    """One expert after the other, and the load-balancing loss."""

    def __init__(self, D: int, hidden: int, E: int, top_k: int):
        super().__init__()
        self.router = nn.Linear(D, E, bias=False)
        self.experts = nn.ModuleList(_GLU(D, hidden) for _ in range(E))
        self.top_k = top_k
        self.loss: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        scores = self.router(flat).softmax(dim=-1)
        weights, chosen = scores.topk(self.top_k)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(flat)
        counts = chosen.flatten().bincount(minlength=len(self.experts))
        for e, expert in enumerate(self.experts):
            tokens, slots = (chosen == e).nonzero(as_tuple=True)
            weighted = expert(flat[tokens]) * weights[tokens, slots, None]
            out = out.index_add(0, tokens, weighted)
        shares = counts / chosen.numel()
        self.loss = len(self.experts) * shares.dot(scores.mean(dim=0))
        return out.view_as(x)


class _Block(nn.Module):

    def __init__(self, config: Any):
        super().__init__()
        ffn, D = config.ffn_config, config.d_model
        self.norm_1 = nn.RMSNorm(D, eps=1e-5)
        self.attn = _Attention(config)
        self.norm_2 = nn.RMSNorm(D, eps=1e-5)
        self.ffn = _Mixture(
            D,
            ffn.ffn_hidden_size,
            ffn.moe_num_experts,
            ffn.moe_top_k,
        ) if 'moe_top_k' in ffn else _GLU(D, ffn.ffn_hidden_size)

    def forward(self, x: torch.Tensor, rope: Any) -> torch.Tensor:
        x = x + self.attn(self.norm_1(x), rope)
        return x + self.ffn(self.norm_2(x))


class PlainModel(nn.Module):
    """An MPT of the quickstart's kind.

    Args:
        config: The section ``model`` of its YAML.
    """

    def __init__(self, config: Any):
        super().__init__()
        D = config.d_model
        self.wte = nn.Embedding(config.vocab_size, D)
        self.blocks = nn.ModuleList(
            _Block(config) for _ in range(config.n_layers)
        )
        self.norm_f = nn.RMSNorm(D, eps=1e-5)
        self.lm_head = nn.Linear(D, config.vocab_size, bias=False)
        self.lbl_weight = config.ffn_config.get('moe_loss_weight', 0)
        C = D // config.n_heads
        theta = config.attn_config.rope_theta
        frequencies = theta**(-torch.arange(0, C, 2) / C)
        angles = torch.outer(torch.arange(config.max_seq_len), frequencies)
        angles_SC = torch.cat((angles, angles), dim=-1)
        self.rope = angles_SC.cos(), angles_SC.sin()

    def forward(self, ids_BS: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids_BS)
        for block in self.blocks:
            x = block(x, self.rope)
        return self.lm_head(self.norm_f(x))

    def loss(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """Cross entropy and, of a mixture, the load-balancing loss."""
        targets = F.pad(ids_BS[:, 1:], (0, 1), value=-100)
        loss = F.cross_entropy(self(ids_BS).flatten(0, 1), targets.flatten())
        if self.lbl_weight:
            of_layers = [
                block.ffn.loss for block in self.blocks
            ]  # type: ignore
            loss = loss + self.lbl_weight * torch.stack(of_layers).mean()
        return loss


@torch.no_grad()
def _lion_step(
    model: nn.Module,
    momenta: dict[nn.Parameter, torch.Tensor],
    optimizer: Any,
) -> None:
    beta1, beta2 = optimizer.betas
    for p in model.parameters():
        momentum = momenta.setdefault(p, torch.zeros_like(p))
        p.mul_(1 - optimizer.weight_decay)
        p.add_(momentum.lerp(p.grad, 1 - beta1).sign_(), alpha=-optimizer.lr)
        momentum.lerp_(p.grad, 1 - beta2)
        p.grad = None


def train(
    config: Any,
    tokens_NS: torch.Tensor,
    step_starts: Callable[[], None],
) -> None:
    """Trains without an end.

    Args:
        config: The train YAML. The schedule is left out: the rate is constant.
        tokens_NS: Sequences, all in memory.
        step_starts: Called before each step.
    """
    torch.manual_seed(config.seed)
    model = PlainModel(config.model)
    momenta: dict[nn.Parameter, torch.Tensor] = {}
    while True:
        for ids_BS in tokens_NS.split(config.global_train_batch_size):
            step_starts()
            loss = model.loss(ids_BS)
            loss.backward()
            _lion_step(model, momenta, config.optimizer)
            loss.item()  # Who trains looks at it.
