"""Token-choice top-K router.

Shape suffixes: T tokens, D d_model, E experts, K top-k.
"""

from typing import NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import nn

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.top_k import TOP_K_KEY

__all__ = ['Router', 'RouterOutput']


class RouterOutput(NamedTuple):
    """What a router decides for T tokens.

    The first three fields stand in the order of Foundry's and MegaBlocks'
    routers, so that code that reads those reads this.

    Attributes:
        scores_TE: Probabilities over all experts, float32.
        expert_weights_TK: Combine weights, in the dtype of the input.
        top_experts_TK: Chosen experts, int64.
        logits_TE: The router's logits, float32.
        tokens_per_expert_E: Token-slots each expert received, int64; they sum
            to T * K because no token is dropped.
    """
    scores_TE: torch.Tensor
    expert_weights_TK: torch.Tensor
    top_experts_TK: torch.Tensor
    logits_TE: torch.Tensor
    tokens_per_expert_E: torch.Tensor


class Router(nn.Module):
    """Softmax over all experts in float32, then the top K of each token.

    Its only parameter is ``layer.weight`` (E, D), as in MegaBlocks.

    Args:
        d_model: Size D of a token.
        moe_num_experts: Number of experts E.
        moe_top_k: Experts a token goes to, K.
        varies: Whether K is another one while training: that of the batch,
            which the model sets as ``training_top_k``.
        moe_normalize_expert_weights: Order p of the norm that divides the K
            combine weights of a token (1: they sum to 1), or None to leave
            the softmax probabilities as they are.
        moe_jitter_eps: While training, tokens are multiplied by uniform noise
            from [1 - eps, 1 + eps] before they are scored (Switch
            Transformer, arXiv 2101.03961, section 2.2). None: no noise.
        device: Where the weight lives.

    Raises:
        ConfigError: It is trained, K varies, and nothing has set it.
    """

    def __init__(
        self,
        d_model: int,
        moe_num_experts: int,
        moe_top_k: int,
        moe_normalize_expert_weights: Optional[Union[int, float]] = 1,
        moe_jitter_eps: Optional[float] = None,
        device: Optional[str] = None,
        varies: bool = False,
    ):
        super().__init__()
        self.moe_num_experts = moe_num_experts
        self.moe_top_k = moe_top_k
        self.training_top_k = None if varies else moe_top_k
        self.moe_normalize_expert_weights = moe_normalize_expert_weights
        self.moe_jitter_eps = moe_jitter_eps
        self.layer = nn.Linear(
            d_model,
            moe_num_experts,
            bias=False,
            device=device,
        )

    def forward(self, x_TD: torch.Tensor) -> RouterOutput:
        logits_TE = self._logits(x_TD)
        scores_TE = logits_TE.softmax(dim=-1)
        weights_TK, top_experts_TK = scores_TE.topk(self._top_k(), dim=-1)
        if self.moe_normalize_expert_weights:
            weights_TK = weights_TK / torch.linalg.vector_norm(
                weights_TK,
                ord=self.moe_normalize_expert_weights,
                dim=-1,
                keepdim=True,
            )
        return RouterOutput(
            scores_TE=scores_TE,
            expert_weights_TK=weights_TK.to(x_TD.dtype),
            top_experts_TK=top_experts_TK,
            logits_TE=logits_TE,
            tokens_per_expert_E=self._count(top_experts_TK.flatten()),
        )

    def _top_k(self) -> int:
        if not self.training:
            return self.moe_top_k
        if self.training_top_k is None:
            raise ConfigError(
                TOP_K_KEY,
                f'up to {self.moe_top_k}',
                'it varies by batch, and nothing says of which batch this is.',
                "set model.name: upcycled_mpt and train it with Composer's "
                'Trainer, or write a whole number.',
            )
        return self.training_top_k

    def _count(self, experts_S: torch.Tensor) -> torch.Tensor:
        # On a GPU, bincount makes the host wait.
        counts_E = experts_S.new_zeros(self.moe_num_experts)
        return counts_E.scatter_add_(0, experts_S, torch.ones_like(experts_S))

    def _logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        # Autocast would run the matrix product in bfloat16, where near ties
        # between experts fall either way. (On a GPU, Composer has float32
        # products in TF32, of 10 bits to bfloat16's 7.)
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.float()
            if self.training and self.moe_jitter_eps is not None:
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(
                    1 - self.moe_jitter_eps,
                    1 + self.moe_jitter_eps,
                )
            return F.linear(x_TD, self.layer.weight.float())
