"""Fits the parameters of a law: least squares, with E held loosely.

Of points with logarithms of sizes t (terms of the exponent) and study s,

    L = exp(t . exponents + log A_s) + E_s

Points hardly say where E lies: left alone it ends anywhere from 0 to the lowest
loss, and a duration that is left out is predicted worse (of upcycling by 0.023
nats instead of 0.019). So it is held near half of a study's lowest loss.

Dimension legend: P points, T terms of the exponent, S studies.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

__all__ = ['Fit', 'evaluate', 'fit']

# Mean and standard deviation of what E is held near, in shares of the lowest
# loss.
_E_MEAN, _E_SD = 0.5, 0.25
# Nats; what is exact but for rounding has a weight as well.
_LEAST_SD = 1e-9


@dataclass(frozen=True, eq=False)
class Fit:
    """What was found.

    Args:
        parameters: Exponents (T), log A (S), E (S).
        covariance: Of the parameters.
        residual_sd: Of a point around the law, in nats.
        influence: What a nat more at each point adds to each parameter, (., P).
    """

    parameters: np.ndarray
    covariance: np.ndarray
    residual_sd: float
    influence: np.ndarray


def evaluate(
    parameters: np.ndarray,
    design: np.ndarray,
    of_study: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Losses (P,), and their gradient by the parameters (P, .).

    Args:
        parameters: As ``Fit`` has them.
        design: What each exponent multiplies, (P, T).
        of_study: 1 where a point is of a study, (P, S).
    """
    linear = np.c_[design, of_study]
    n_linear = linear.shape[1]
    reducible = np.exp(linear @ parameters[:n_linear])
    losses = reducible + of_study @ parameters[n_linear:]
    return losses, np.c_[reducible[:, None] * linear, of_study]


def fit(design: np.ndarray, of_study: np.ndarray, losses: np.ndarray) -> Fit:
    """Finds the parameters, of which there must be fewer than points.

    The spread of the points, which says how much they weigh against what is
    expected of E, is estimated along with them.

    Args:
        design: What each exponent multiplies, (P, T).
        of_study: 1 where a point is of a study, (P, S).
        losses: Measured, above 0, (P,).
    """
    problem = _Problem(design, of_study, losses)
    parameters = problem.start()
    residual_sd = 0.01 * float(losses.mean())
    for _ in range(20):
        before = residual_sd
        parameters = problem.solve(parameters, residual_sd)
        residual_sd = problem.residual_sd(parameters)
        if math.isclose(residual_sd, before, rel_tol=1e-3):
            break
    gradient = problem.gradient(parameters, residual_sd)
    # Linearised, as the law is not linear in its parameters.
    covariance = np.linalg.pinv(gradient.T @ gradient)
    of_points = gradient[:len(losses)]
    influence = covariance @ of_points.T / residual_sd
    return Fit(parameters, covariance, residual_sd, influence)


class _Problem:
    """Least squares of points, and of E around what is expected of it."""

    def __init__(
        self,
        design: np.ndarray,
        of_study: np.ndarray,
        losses: np.ndarray,
    ):
        self.design, self.of_study, self.losses = design, of_study, losses
        lowest = np.array([losses[of > 0].min() for of in of_study.T])
        self.expected, self.sd = _E_MEAN * lowest, _E_SD * lowest
        n_parameters = design.shape[1] + 2 * len(lowest)
        self.only_E = np.eye(n_parameters)[-len(lowest):]

    def start(self) -> np.ndarray:
        """With E known, the law is linear in logarithms."""
        reducible = self.losses - self.of_study @ self.expected
        weighed = np.c_[self.design, self.of_study] * reducible[:, None]
        logs = np.log(reducible) * reducible
        return np.r_[np.linalg.lstsq(weighed, logs, rcond=None)[0],
                     self.expected]

    def solve(self, start: np.ndarray, residual_sd: float) -> np.ndarray:
        return least_squares(
            self.errors,
            start,
            self.gradient,
            method='lm',
            x_scale='jac',
            args=(residual_sd, ),
        ).x

    def errors(self, parameters: np.ndarray, residual_sd: float) -> np.ndarray:
        """Of points and of E, in standard deviations."""
        means, _ = evaluate(parameters, self.design, self.of_study)
        of_E = self.only_E @ parameters - self.expected
        return np.r_[(means - self.losses) / residual_sd, of_E / self.sd]

    def gradient(
        self,
        parameters: np.ndarray,
        residual_sd: float,
    ) -> np.ndarray:
        _, gradient = evaluate(parameters, self.design, self.of_study)
        return np.r_[gradient / residual_sd, self.only_E / self.sd[:, None]]

    def residual_sd(self, parameters: np.ndarray) -> float:
        means, _ = evaluate(parameters, self.design, self.of_study)
        errors = means - self.losses
        dof = len(errors) - len(parameters)
        return max(math.sqrt(float(errors @ errors) / dof), _LEAST_SD)
