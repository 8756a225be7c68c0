"""Continue pretraining, or upcycle? A prediction before any run."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Mapping, Optional, Sequence

import numpy as np

from foundry_upcycle.planning.advice.arms import ARMS, Arms, Curves
from foundry_upcycle.planning.advice.costs import (
    Interval,
    Prices,
    ServingSpeed,
    require_positive,
)
from foundry_upcycle.planning.advice.crossing import Crossing, find_crossing
from foundry_upcycle.planning.advice.model import DenseModel
from foundry_upcycle.planning.advice.outside import (
    Outside,
    beyond,
    budget_outside,
    model_outside,
)

__all__ = ['Advice', 'Budget', 'advise']

# Fractions of pretraining's FLOPs among which a crossing is looked for.
_LEAST, _MOST, _N_FRACTIONS = 0.01, 10.0, 601


@dataclass(frozen=True)
class Budget:
    """What is predicted of a budget.

    Args:
        fraction: Of the pretraining FLOPs.
        flops: Of the second phase.
        training_price: Of either arm.
        tokens: Arm -> tokens of its second phase.
        losses: Arm -> final loss, in nats a token.
        lead: By how much upcycling ends lower.
        same_loss: Fraction with which continued pretraining would reach
            upcycling's loss; infinite where it never does.
        served_below: Tokens up to which upcycling is the cheaper way to that
            loss, training and serving taken together.
        totals: Price of training and serving together: of each arm, and, as
            ``cpt_same_loss``, of continued pretraining that has upcycling's
            loss; None where it is not known how much is served.
        nat_price: What a nat must be worth for upcycling to pay where
            continued pretraining gets no larger budget; None likewise.
        outside: How far outside the data it lies.
    """

    fraction: float
    flops: float
    training_price: float
    tokens: Mapping[str, int]
    losses: Mapping[str, Interval]
    lead: Interval
    same_loss: Interval
    served_below: Interval
    totals: Optional[Mapping[str, float]]
    nat_price: Optional[Interval]
    outside: tuple[Outside, ...]

    @property
    def verdict(self) -> str:
        """Of upcycling: ``ahead``, ``behind`` or ``not told apart``."""
        if self.lead.low > 0:
            return 'ahead'
        return 'behind' if self.lead.high < 0 else 'not told apart'


@dataclass(frozen=True, eq=False)
class _Question:
    """What is asked.

    Args:
        model: What is asked about.
        arms: The laws.
        study: Whose scale losses are on.
        speed: How fast the models are served.
        prices: What computing costs.
        served_tokens: In the model's life; None where that is not known.
    """

    model: DenseModel
    arms: Arms
    study: str
    speed: ServingSpeed
    prices: Prices
    served_tokens: Optional[float]

    def curves(self, fractions: np.ndarray) -> Curves:
        model = self.model
        flops = fractions * model.pretraining_flops
        tokens = {arm: flops / model.flops[arm] for arm in ARMS}
        return self.arms.predict(
            self.study,
            model.n_params,
            model.tokens,
            tokens,
        )


@dataclass(frozen=True, eq=False)
class Advice(_Question):
    """What is predicted, and what follows from it.

    Args: see ``_Question``, and
        budgets: Predictions, by ascending fraction.
        crossing: Where upcycling overtakes.
    """

    budgets: tuple[Budget, ...]
    crossing: Crossing

    @cached_property
    def outside(self) -> tuple[Outside, ...]:
        """Of each quantity the prediction that lies farthest outside."""
        found = [each for budget in self.budgets for each in budget.outside]
        found += self._crossing_outside()
        worst: dict[str, Outside] = {}
        for each in found:
            known = worst.get(each.what)
            if known is None or each.factor > known.factor:
                worst[each.what] = each
        return tuple(worst.values())

    def _crossing_outside(self) -> list[Outside]:
        data = [p.fraction for p in self.arms.cpt.points_of(self.study)]
        what = 'fraction of pretraining FLOPs from which upcycling is ahead'
        found: list[Outside] = []
        if self.crossing.fraction is not None:
            found += beyond(what, self.crossing.fraction, data)
        if self.crossing.told_apart is not None:
            first, _ = self.crossing.told_apart
            found += beyond(f'{what}, told apart', first, data)
        return found


def advise(
    model: DenseModel,
    arms: Arms,
    study: str,
    fractions: Sequence[float],
    speed: ServingSpeed,
    prices: Prices,
    served_tokens: Optional[float] = None,
) -> Advice:
    """Predicts what both arms come to, and which is the one to choose.

    Args:
        model: The dense model.
        arms: The laws.
        study: On whose scale to predict losses.
        fractions: Budgets, as fractions of the pretraining FLOPs.
        speed: How fast the models are served.
        prices: What computing costs.
        served_tokens: In the model's life, if that is known.

    Raises:
        ConfigError: A number is none that can be, a budget buys no step, or
            the laws' points say nothing of the model.
    """
    for fraction in fractions:
        meaning = 'fractions of the pretraining FLOPs, such as 0.1,0.2,0.4'
        require_positive('--budgets', fraction, 1e6, meaning)
    if served_tokens is not None:
        meaning = 'the tokens to be served, such as 1e12'
        require_positive('--served', served_tokens, 1e30, meaning)
    grid = np.geomspace(_LEAST, _MOST, _N_FRACTIONS)
    work = _Budgets(model, arms, study, speed, prices, served_tokens)
    curves = work.curves(grid)
    return Advice(
        **vars(work),
        budgets=tuple(map(work.predict, sorted(set(fractions)))),
        crossing=find_crossing(grid, curves.lead, curves.lead_half_width),
    )


class _Budgets(_Question):
    """Predicts one budget after the other."""

    def predict(self, fraction: float) -> Budget:
        model = self.model
        tokens = {arm: model.tokens_of(arm, fraction) for arm in ARMS}
        curves = self.arms.predict(
            self.study,
            model.n_params,
            model.tokens,
            {
                arm: np.array([float(of)])
                for arm, of in tokens.items()
            },
        )
        losses = {
            arm: _interval(curves.losses[arm], curves.half_widths[arm])
            for arm in ARMS
        }
        lead = _interval(curves.lead, curves.lead_half_width)
        same_loss = self._same_loss(fraction, losses['cpt'].value, lead)
        flops = fraction * model.pretraining_flops
        return Budget(
            fraction,
            flops,
            self.prices.training(flops),
            tokens,
            losses,
            lead,
            same_loss,
            self._served_below(fraction, same_loss),
            self._totals(fraction, same_loss.value),
            self._nat_price(lead),
            self._outside(fraction, tokens, same_loss),
        )

    def _outside(
        self,
        fraction: float,
        tokens: Mapping[str, int],
        same_loss: Interval,
    ) -> tuple[Outside, ...]:
        model, points = self.model, self.arms.points_of(self.study)
        found = model_outside(points, model.n_params, model.tokens)
        found += budget_outside(points, fraction, tokens)
        if fraction < same_loss.value < math.inf:
            found += beyond(
                'fraction of pretraining FLOPs with which cpt has the loss of '
                'upcycled',
                same_loss.value,
                [point.fraction for point in points['cpt']],
            )
        return tuple(found)

    def _same_loss(
        self,
        fraction: float,
        loss: float,
        lead: Interval,
    ) -> Interval:
        """Fractions with which continued pretraining gains the lead."""
        model = self.model

        def fraction_for(nats: float) -> float:
            tokens = self.arms.cpt.tokens_for(
                loss - nats,
                self.study,
                model.n_params,
                model.tokens,
            )
            found = tokens / model.tokens
            # No lead needs no more, even where a law's loss doesn't fall.
            return found if nats > 0 else min(found, fraction)

        return Interval(*map(fraction_for, (lead.value, lead.low, lead.high)))

    def _served_below(self, fraction: float, same_loss: Interval) -> Interval:
        """What the longer training would cost, in tokens served dearer."""
        return Interval(
            *(
                self.prices.served_for(
                    self.prices.training((other - fraction) *
                                         self.model.pretraining_flops),
                    self.speed,
                ) for other in (same_loss.value, same_loss.low, same_loss.high)
            )
        )

    def _totals(
        self,
        fraction: float,
        same_loss: float,
    ) -> Optional[dict[str, float]]:
        """Training and serving (arXiv 2401.00448, its total cost)."""
        if self.served_tokens is None:
            return None
        flops = self.model.pretraining_flops
        training = self.prices.training(fraction * flops)
        longer = self.prices.training(same_loss * flops)
        dense = self.prices.serving(
            self.served_tokens,
            self.speed.dense_tokens_per_s,
        )
        return {
            'cpt': training + dense,
            'upcycled': training + dense * self.speed.ratio.value,
            'cpt_same_loss': longer + dense,
        }

    def _nat_price(self, lead: Interval) -> Optional[Interval]:
        if self.served_tokens is None:
            return None
        more = self.prices.more_for_mixture(self.served_tokens, self.speed)
        # The larger the lead, the less a nat needs to be worth.
        return Interval(
            *(
                max(more, 0.0) / nats if nats > 0 else math.inf
                for nats in (lead.value, lead.high, lead.low)
            )
        )


def _interval(value: np.ndarray, half_width: np.ndarray) -> Interval:
    middle, half = float(value[0]), float(half_width[0])
    return Interval(middle, middle - half, middle + half)
