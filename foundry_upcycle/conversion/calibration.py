"""What experts did on texts, as a file.

Shape suffixes: E experts.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from foundry_upcycle.checkpoints.mixture import Mixture, weights_id
from foundry_upcycle.config import is_whole
from foundry_upcycle.documents import DocumentError, read_json
from foundry_upcycle.errors import CheckpointError
from foundry_upcycle.files import write_whole

__all__ = ['Calibration', 'LayerStatistics', 'is_calibration']

_KIND = 'foundry_upcycle calibration'


@dataclass(frozen=True)
class LayerStatistics:
    """Of a layer of E experts, over all tokens.

    Attributes:
        coactivation: Tokens that went to both of two experts, (E, E); on the
            diagonal an expert's load: the tokens that went to it.
        weighted_norm: Sum over an expert's tokens of its output's length (L2)
            times its combine weight, (E,).
    """
    coactivation: list[list[int]]
    weighted_norm: list[float]

    @property
    def load_E(self) -> np.ndarray:
        return np.diagonal(np.array(self.coactivation, dtype=float))

    @property
    def saliency_E(self) -> np.ndarray:
        """Mean of the weighted norms over an expert's tokens; 0 without any.

        REAP (arXiv 2510.13999), the saliency of an expert.
        """
        return np.array(self.weighted_norm) / np.maximum(self.load_E, 1)


@dataclass(frozen=True)
class Calibration:
    """What the experts of a mixture did on texts.

    Attributes:
        model: Path of the mixture.
        weights: Its ``weights_id``.
        text: Path of the texts.
        tokens: How many tokens of them the model ran on.
        top_k: Experts K a token went to.
        layers: Block -> what its experts did.
    """
    model: str
    weights: str
    text: str
    tokens: int
    top_k: int
    layers: dict[int, LayerStatistics]

    @classmethod
    def read(cls, path: str) -> 'Calibration':
        """Reads what ``write`` wrote.

        Raises:
            CheckpointError: It is none, or damaged.
        """
        try:
            content = read_json(path)
            if content.pop('kind') != _KIND:
                raise ValueError('it is of another kind')
            layers = {
                int(layer): LayerStatistics(**statistics)
                for layer, statistics in content.pop('layers').items()
            }
            calibration = cls(**content, layers=layers)
            _check(calibration)
            return calibration
        except DocumentError as error:
            raise _unusable(path, error) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _unusable(
                path, f'it is not a calibration ({error}).'
            ) from error

    def write(self, path: str) -> None:
        """Writes a JSON file, whole or not at all.

        Raises:
            OSError: It can't be written.
        """
        content = {'kind': _KIND, **asdict(self)}
        write_whole(Path(os.path.abspath(path)), json.dumps(content) + '\n')

    def check_model(self, path: str, mixture: Mixture) -> None:
        """Checks that it is of this very model.

        Args:
            path: Of the calibration, for messages.
            mixture: The model.

        Raises:
            CheckpointError: It is of another.
        """
        if self.weights != weights_id(mixture.source):
            raise _unusable(
                path,
                f'it is of other weights ({self.model}) than those of '
                f'{mixture.source.path}.',
                f'run foundry-upcycle calibrate {mixture.source.path}.',
            )
        sizes = {len(layer.weighted_norm) for layer in self.layers.values()}
        if self.layers.keys() != {*mixture.ffns} or sizes != {mixture.n_experts
                                                             }:
            raise _unusable(path, 'it is not of all layers and experts.')

    def describe(self, path: str) -> list[tuple[str, str]]:
        """What ``inspect`` prints: a label and a line of each fact."""
        facts = [
            ('path', path),
            ('format', 'calibration (JSON)'),
            ('model', self.model),
            ('text', f'{self.text}, {self.tokens:,} tokens'),
            ('experts', f'top-{self.top_k}; of each its share of the load, '),
            ('', 'mean router-weighted norm of its output, and the expert it'),
            ('', 'most often works with'),
        ]
        for number, layer in self.layers.items():
            facts += [(f'layer {number}' if e == 0 else '', line)
                      for e, line in enumerate(_lines(layer))]
        return facts


def is_calibration(path: str) -> bool:
    """Whether a file may be one: it is JSON, which no checkpoint is."""
    try:
        with open(path, 'rb') as file:
            return file.read(1) == b'{'
    except (OSError, ValueError):
        return False  # Whoever opens it says why.


def _lines(layer: LayerStatistics) -> list[str]:
    together_EE = np.array(layer.coactivation)
    load_E, saliency_E = layer.load_E, layer.saliency_E
    np.fill_diagonal(together_EE, -1)
    partner_E = together_EE.argmax(axis=1)
    share_E = load_E / max(load_E.sum(), 1)
    return [
        f'{e:3}  {share_E[e]:6.1%}  {saliency_E[e]:9.4g}  '
        f'{partner_E[e] if together_EE[e, partner_E[e]] > 0 else "-":>3}'
        for e in range(len(load_E))
    ]


def _check(calibration: Calibration) -> None:
    texts = (calibration.model, calibration.weights, calibration.text)
    numbers = (calibration.tokens, calibration.top_k)
    if not all(isinstance(t, str) for t in texts) or not calibration.layers:
        raise ValueError('it does not say of what it is')
    if not all(is_whole(number) for number in numbers):
        raise ValueError('it does not say of how many tokens it is')
    for layer in calibration.layers.values():
        together_EE = np.array(layer.coactivation, dtype=float)
        norm_E = np.array(layer.weighted_norm, dtype=float)
        E = len(norm_E)
        if together_EE.shape != (E, E) or E == 0:
            raise ValueError('its layers are not (E, E) and (E,)')
        both = np.concatenate([together_EE.ravel(), norm_E])
        if not np.isfinite(both).all() or (both < 0).any():
            raise ValueError('it has numbers that are none of these statistics')


def _unusable(
    path: str,
    problem: object,
    fix: str = 'run foundry-upcycle calibrate again.',
) -> CheckpointError:
    return CheckpointError(path, str(problem), fix)
