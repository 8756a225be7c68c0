"""Compares the predictions of two arms' laws.

Both arms' runs at a place go on from the same dense model, with data in the
same order, so they may err together. How much is estimated from the residuals
of the places that both have, and counted in the interval of a difference: what
two errors share cancels. (In the paper's points they share nothing: their
correlation is -0.1.)

Dimension legend: B budgets.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Sequence

import numpy as np

from foundry_upcycle.planning.advice.laws import Law, Point, fit_law

__all__ = ['ARMS', 'Arms', 'Curves', 'fit_arms']

# Continued pretraining, upcycling.
ARMS = ('cpt', 'upcycled')
# Fewer pairs tell no correlation.
_FEWEST_PAIRS = 4


@dataclass(frozen=True, eq=False)
class Curves:
    """Final losses of both arms at the same FLOPs, and intervals of 95 %.

    Args:
        losses: Arm -> nats a token, (B,).
        half_widths: Arm -> of the interval of one run's loss, (B,).
        lead: By how much upcycling ends lower, (B,).
        lead_half_width: Of the interval of one pair of runs, (B,).
    """

    losses: dict[str, np.ndarray]
    half_widths: dict[str, np.ndarray]
    lead: np.ndarray
    lead_half_width: np.ndarray


@dataclass(frozen=True, eq=False)
class Arms:
    """The laws of both arms."""

    cpt: Law
    upcycled: Law

    @property
    def laws(self) -> dict[str, Law]:
        return dict(zip(ARMS, (self.cpt, self.upcycled), strict=True))

    def points_of(self, study: str) -> dict[str, list[Point]]:
        """Arm -> the points of a study."""
        return {arm: law.points_of(study) for arm, law in self.laws.items()}

    @cached_property
    def pairs(self) -> np.ndarray:
        """1 where points of the arms are of one place, (points, points)."""
        own, others = map(_places, (self.cpt.points, self.upcycled.points))
        return np.array([[float(a == b) for b in others] for a in own])

    @cached_property
    def correlation(self) -> float:
        """Of the residuals of pairs; 0 where there are few."""
        own, others = np.nonzero(self.pairs)
        if len(own) < _FEWEST_PAIRS:
            return 0.0
        left = self.cpt.residuals[own]
        right = self.upcycled.residuals[others]
        return float(
            left @ right / np.sqrt((left @ left) * (right @ right) or 1.0)
        )

    def predict(
        self,
        study: str,
        n_params: float,
        pretraining_tokens: float,
        tokens: dict[str, np.ndarray],
    ) -> Curves:
        """Predicts what both arms end with.

        Args:
            study: On whose scale.
            n_params: Of the dense model.
            pretraining_tokens: Of the dense model.
            tokens: Arm -> of the second phase, (B,).

        Raises:
            ConfigError: The points say nothing of such a model.
        """
        model = study, n_params, pretraining_tokens
        cpt, of_cpt = self.cpt.predict(*model, tokens['cpt'])
        moe, of_moe = self.upcycled.predict(*model, tokens['upcycled'])
        return Curves(
            {
                'cpt': cpt,
                'upcycled': moe
            },
            {
                'cpt': self.cpt.half_width(of_cpt),
                'upcycled': self.upcycled.half_width(of_moe),
            },
            cpt - moe,
            self._lead_half_width(of_cpt, of_moe),
        )

    def _lead_half_width(
        self,
        of_cpt: np.ndarray,
        of_moe: np.ndarray,
    ) -> np.ndarray:
        quantile = max(self.cpt.quantile, self.upcycled.quantile)
        own, other = self.cpt.fit, self.upcycled.fit
        shared = self.correlation * own.residual_sd * other.residual_sd
        # Of the laws, whose errors are those of their points.
        across = shared * own.influence @ self.pairs @ other.influence.T
        errors = (of_cpt @ own.covariance * of_cpt).sum(1)
        errors += (of_moe @ other.covariance * of_moe).sum(1)
        errors -= 2 * (of_cpt @ across * of_moe).sum(1)
        # Of two runs around them.
        errors += own.residual_sd**2 + other.residual_sd**2 - 2 * shared
        return quantile * np.sqrt(np.maximum(errors, 0))


def fit_arms(cpt: Sequence[Point], upcycled: Sequence[Point]) -> Arms:
    """Fits both laws.

    Raises:
        ConfigError: An arm has too few points.
    """
    return Arms(fit_law(cpt, 'cpt'), fit_law(upcycled, 'upcycled'))


def _places(points: Sequence[Point]) -> list[tuple[str, str, float]]:
    return [(point.study, point.start, point.fraction) for point in points]
