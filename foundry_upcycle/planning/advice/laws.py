"""Predicts the final loss of a second phase, by a law fitted to measured ones.

Of one arm (continued pretraining, or upcycling)

    L = A N^-a D1^-b D2^(-c + d log D1) + E

with N parameters of the dense model, D1 tokens of its pretraining and D2 of
the second phase. That is the law in both numbers of tokens of Liew et al.
(arXiv 2502.03009, of upcycling; of continued pretraining Liew and Kato, arXiv
2510.06548), whose term with d says that the longer the pretraining was, the
less further tokens give. The factor N^-a is ours.

Exponents are shared by all studies. A and E are each study's own: another text
or tokenizer has its losses on another scale.

Dimension legend: P points, T terms of the exponent, S studies, B budgets.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Mapping, Optional, Sequence

import numpy as np
from scipy.special import stdtrit

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.advice.fitting import Fit, evaluate, fit

__all__ = ['Law', 'Point', 'cross_validate', 'fit_law']

# How far a term must vary (root mean square, in natural logarithms) beyond what
# the others explain for points to tell its exponent; and how far beyond that
# relation a prediction may lie where they don't.
_SPREAD, _MOST_BEYOND = 0.05, 0.1
_LEVEL = 0.975
_NAMES = ('c', 'b', 'a', 'd')


@dataclass(frozen=True)
class Point:
    """A second phase that was run.

    Args:
        study: Whose losses are on one scale.
        start: The dense model that it went on from; of a study.
        fraction: Its FLOPs over those of pretraining.
        n_params: Of the dense model, N.
        pretraining_tokens: D1.
        tokens: Of this phase, D2.
        loss: Final cross entropy, in nats a token.
    """

    study: str
    start: str
    fraction: float
    n_params: float
    pretraining_tokens: float
    tokens: float
    loss: float


@dataclass(frozen=True, eq=False)
class Law:
    """A law, as far as an arm's points tell it.

    Args:
        points: What it was fitted to.
        centre: Mean of log N, log D1 and log D2, from which they are counted:
            the same laws, whose parameters hang less together.
        kept: Indices of the terms whose exponents the points tell.
        fit: Exponents of those terms, and log A and E of each study.
    """

    points: tuple[Point, ...]
    centre: np.ndarray
    kept: tuple[int, ...]
    fit: Fit

    @property
    def studies(self) -> tuple[str, ...]:
        return _studies(self.points)

    @property
    def dof(self) -> int:
        """Degrees of freedom; each E counts whole."""
        return len(self.points) - len(self.fit.parameters)

    @property
    def quantile(self) -> float:
        """Student's t, of an interval of 95 %."""
        return float(stdtrit(self.dof, _LEVEL))

    def points_of(self, study: str) -> list[Point]:
        return [point for point in self.points if point.study == study]

    @cached_property
    def residuals(self) -> np.ndarray:
        """Measured minus predicted, (P,)."""
        design = _design(self.points, self.centre)[:, self.kept]
        of_study = _of_study(self.points, self.studies)
        means, _ = evaluate(self.fit.parameters, design, of_study)
        return np.array([p.loss for p in self.points]) - means

    @property
    def rms(self) -> float:
        """Root mean square of the residuals, in nats."""
        return math.sqrt(np.square(self.residuals).mean())

    def predict(
        self,
        study: str,
        n_params: float,
        pretraining_tokens: float,
        tokens_B: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Final losses (B,), and their gradient by the parameters (B, .).

        Args:
            study: On whose scale.
            n_params: N.
            pretraining_tokens: D1.
            tokens_B: D2.

        Raises:
            ConfigError: The points say nothing of such a model.
        """
        terms = _terms(
            np.full_like(tokens_B, n_params),
            np.full_like(tokens_B, pretraining_tokens),
            tokens_B,
            self.centre,
        )
        of_study = np.zeros((len(tokens_B), len(self.studies)))
        of_study[:, self.studies.index(study)] = 1
        if not self._is_known(terms, of_study):
            raise ConfigError(
                'model',
                f'{n_params:.4g} parameters, {pretraining_tokens:.4g} tokens',
                'the runs do not tell what size, pretraining and further '
                'training do each, so nothing is known of it.',
                'give runs of more sizes, durations and fractions, or add the '
                "paper's (leave --without-paper out).",
            )
        return evaluate(self.fit.parameters, terms[:, self.kept], of_study)

    def half_width(self, gradient: np.ndarray) -> np.ndarray:
        """Of the interval of 95 % of one run around the law, (B,)."""
        variance = (gradient @ self.fit.covariance * gradient).sum(1)
        return self.quantile * np.sqrt(variance + self.fit.residual_sd**2)

    def tokens_for(
        self,
        loss: float,
        study: str,
        n_params: float,
        pretraining_tokens: float,
    ) -> float:
        """D2 that reaches a loss; infinite where none does."""
        some = np.exp(self.centre[2] + np.array([0.0, 1.0]))
        means, _ = self.predict(study, n_params, pretraining_tokens, some)
        E = self.fit.parameters[len(self.kept) + len(self.studies):]
        lowest = float(E[self.studies.index(study)])
        # log (L - E) is linear in log D2.
        first, second = np.log(means - lowest)
        slope = second - first
        if loss <= lowest or slope >= 0:
            return math.inf
        steps = (math.log(loss - lowest) - first) / slope
        return _exp(float(self.centre[2] + steps))

    def as_printed(self, study: str) -> dict[str, Optional[float]]:
        """Parameters of the law as it stands above; None: not told by points.

        Args:
            study: Whose A and E.
        """
        told = dict(zip((_NAMES[i] for i in self.kept), self.fit.parameters))
        c, b, a, d = (float(told.get(name, 0.0)) for name in _NAMES)
        n, x, y = map(float, self.centre)
        index = len(self.kept) + self.studies.index(study)
        level = float(self.fit.parameters[index])
        log_A = level + a * n + b * x + c * y + d * x * y
        of_law = {'a': a, 'b': b + d * y, 'c': c + d * x, 'd': d}
        return {
            'log_A': log_A,
            **{
                name: value if name in told else None
                for name, value in of_law.items()
            },
            'E': float(self.fit.parameters[index + len(self.studies)]),
        }

    def _is_known(self, terms: np.ndarray, of_study: np.ndarray) -> bool:
        """Whether what the points don't tell is as it is in them."""
        own = _design(self.points, self.centre)
        own_studies = _of_study(self.points, self.studies)
        known = np.c_[own_studies, own[:, self.kept]]
        asked = np.c_[of_study, terms[:, self.kept]]
        others = [i for i in range(len(_NAMES)) if i not in self.kept]
        relation = np.linalg.lstsq(known, own[:, others], rcond=None)[0]
        beyond = np.abs(terms[:, others] - asked @ relation)
        return bool((beyond <= _MOST_BEYOND).all())


def fit_law(points: Sequence[Point], arm: str = 'an arm') -> Law:
    """Fits the law of an arm to what was measured.

    Args:
        points: Of all studies, one or more; a place once, seeds averaged.
        arm: For errors.

    Raises:
        ConfigError: There are no more points than parameters.
    """
    points, studies = tuple(points), _studies(points)
    centre = np.log([_sizes(point) for point in points]).mean(0)
    design, of_study = _design(points, centre), _of_study(points, studies)
    kept = _told(design, of_study)
    n_parameters = len(kept) + 2 * len(studies)
    if len(points) <= n_parameters:
        raise ConfigError(
            'runs',
            f'{len(points)} finished of {arm}',
            f'the law has {n_parameters} parameters, and needs more points '
            'than that.',
            "finish more runs, or add the paper's (leave --without-paper out).",
        )
    losses = np.array([point.loss for point in points])
    return Law(points, centre, kept, fit(design[:, kept], of_study, losses))


def cross_validate(points: Sequence[Point]) -> Mapping[str, np.ndarray]:
    """Errors where all runs of a dense start are left out of the fit.

    Returns:
        ``STUDY START`` -> predicted minus measured at each of its points, in
        nats. Starts that the others say nothing of are not there.
    """
    errors = {}
    for study, start in dict.fromkeys((p.study, p.start) for p in points):
        is_out = [(p.study, p.start) == (study, start) for p in points]
        out = [p for p, left in zip(points, is_out) if left]
        rest = [p for p, left in zip(points, is_out) if not left]
        if study not in _studies(rest):
            continue
        try:
            means, _ = fit_law(rest).predict(
                study,
                out[0].n_params,
                out[0].pretraining_tokens,
                np.array([point.tokens for point in out]),
            )
        except ConfigError:
            continue
        errors[f'{study} {start}'] = means - [point.loss for point in out]
    return errors


def _sizes(point: Point) -> tuple[float, float, float]:
    return point.n_params, point.pretraining_tokens, point.tokens


def _studies(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(point.study for point in points))


def _of_study(points: Sequence[Point], studies: Sequence[str]) -> np.ndarray:
    """1 where a point is of a study, (P, S)."""
    return np.array([[float(point.study == study)
                      for study in studies]
                     for point in points])


def _design(points: Sequence[Point], centre: np.ndarray) -> np.ndarray:
    sizes = np.array([_sizes(point) for point in points])
    n_params, pretraining_tokens, tokens = sizes.T
    return _terms(n_params, pretraining_tokens, tokens, centre)


def _terms(
    n_params: np.ndarray,
    pretraining_tokens: np.ndarray,
    tokens: np.ndarray,
    centre: np.ndarray,
) -> np.ndarray:
    """What c, b, a and d multiply in log (L - E), (., 4)."""
    n = np.log(n_params) - centre[0]
    x = np.log(pretraining_tokens) - centre[1]
    y = np.log(tokens) - centre[2]
    return np.stack([-y, -x, -n, x * y], axis=1)


def _told(design: np.ndarray, of_study: np.ndarray) -> tuple[int, ...]:
    """The terms that points tell apart from the others and from studies."""
    kept: list[int] = []
    for index in range(design.shape[1]):
        known = np.c_[of_study, design[:, kept]]
        column = design[:, index]
        relation = np.linalg.lstsq(known, column, rcond=None)[0]
        beyond = column - known @ relation
        if math.sqrt(np.square(beyond).mean()) > _SPREAD:
            kept.append(index)
    return tuple(kept)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
