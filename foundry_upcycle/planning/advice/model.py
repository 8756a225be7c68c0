"""The dense model that is asked about, and the mixture it may become."""

from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np

from foundry_upcycle.planning.advice.costs import require_positive
from foundry_upcycle.planning.advice.laws import Point
from foundry_upcycle.planning.flops import ModelShape, require_experts
from foundry_upcycle.planning.isoflop import steps_for_budget

__all__ = ['DenseModel', 'Mixture', 'model_of_numbers', 'model_of_shape']


@dataclass(frozen=True)
class Mixture:
    """How the mixture is made.

    Args:
        n_experts: In every block.
        top_k: Experts that a token visits.
    """

    n_experts: int
    top_k: int

    def __post_init__(self) -> None:
        require_experts(self.n_experts, self.top_k)

    def __str__(self) -> str:
        return f'{self.n_experts} experts, top-{self.top_k}'


@dataclass(frozen=True)
class DenseModel:
    """A dense model, and what a token costs to train.

    Args:
        name: What it is called.
        n_params: Of the dense model, all of them.
        tokens: That it was pretrained on.
        mixture: What upcycling makes of it.
        flops: Arm -> training FLOPs of a token.
        flops_from: What these were taken from.
        tokens_per_step: Of one optimizer step, over all ranks.
    """

    name: str
    n_params: float
    tokens: float
    mixture: Mixture
    flops: Mapping[str, float]
    flops_from: str
    tokens_per_step: int = 1

    def __post_init__(self) -> None:
        _require_sizes(self.n_params, self.tokens)

    @property
    def pretraining_flops(self) -> float:
        return self.tokens * self.flops['cpt']

    def tokens_of(self, arm: str, fraction: float) -> int:
        """Tokens that a fraction of the pretraining FLOPs buys, in whole steps.

        Raises:
            ConfigError: It buys none.
        """
        n_steps, _ = steps_for_budget(
            fraction * self.pretraining_flops,
            self.flops[arm],
            self.tokens_per_step,
        )
        return n_steps * self.tokens_per_step


def model_of_shape(
    name: str,
    shape: ModelShape,
    seq_len: int,
    tokens: float,
    mixture: Mixture,
    tokens_per_step: int = 1,
) -> DenseModel:
    """A model of which all sizes are known.

    Raises:
        ConfigError: It is a mixture already, or a number is none that can be.
    """
    moe = shape.upcycled(mixture.n_experts, mixture.top_k)
    return DenseModel(
        name,
        shape.n_total_params,
        tokens,
        mixture,
        {
            'cpt': shape.training_flops_per_token(seq_len),
            'upcycled': moe.training_flops_per_token(seq_len),
        },
        f'counted, at {seq_len:,} tokens a sequence',
        tokens_per_step,
    )


def model_of_numbers(
    n_params: float,
    tokens: float,
    mixture: Mixture,
    points: Mapping[str, Sequence[Point]],
) -> DenseModel:
    """A model of which parameters and tokens are known.

    A token takes 6 FLOPs a parameter. The share of them that is in the
    feed-forward layers, of which a mixture has ``top_k``, is that of the
    paper's models, by the tokens that it printed for equal FLOPs: between its
    sizes linear in log N, beyond them that of the nearest. Attention over long
    sequences and the router are left out.

    Args:
        n_params: Of the dense model, all of them.
        tokens: That it was pretrained on.
        mixture: What upcycling makes of it.
        points: The paper's, of mixtures with top-2.

    Raises:
        ConfigError: A number is none that can be.
    """
    _require_sizes(n_params, tokens)
    share = _feed_forward_share(n_params, points)
    ratio = 1 + (mixture.top_k - 1) * share
    return DenseModel(
        'as its numbers say',
        n_params,
        tokens,
        mixture,
        {
            'cpt': 6 * n_params,
            'upcycled': 6 * n_params * ratio,
        },
        "6 a parameter, and of the mixture by the paper's tokens: a YAML or "
        'checkpoint has them counted',
    )


def _feed_forward_share(
    n_params: float,
    points: Mapping[str, Sequence[Point]],
) -> float:
    ratios: dict[float, list[float]] = {}
    for cpt, moe in zip(points['cpt'], points['upcycled'], strict=True):
        # With top-2 a token meets the feed-forward layers once more.
        share = cpt.tokens / moe.tokens - 1
        ratios.setdefault(cpt.n_params, []).append(share)
    sizes = sorted(ratios)
    means = [float(np.mean(ratios[size])) for size in sizes]
    return float(np.interp([np.log(n_params)], np.log(sizes), means)[0])


def _require_sizes(n_params: float, tokens: float) -> None:
    count = 'how many, such as 436e6'
    require_positive('--params', n_params, 1e15, count)
    seen = 'those of its pretraining, such as 43.6e9'
    require_positive('--tokens', tokens, 9e18, seen)
