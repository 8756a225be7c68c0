"""What the paper measured, as published (``paper.yaml`` says where)."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Mapping, Optional

import yaml

from benchmarks.inference.report.records import Arm

__all__ = ['PAPER', 'PaperModel', 'PaperSize', 'paper_model', 'paper_size']

PAPER = 'Doubov, Sardana and Chiley, PMLR v262, Figure 2'
_FILE = Path(__file__).with_name('paper.yaml')
_EXPERTS = 8


@dataclass(frozen=True)
class PaperModel:
    """One model of the paper.

    Args:
        throughput: Input and output tokens a second, at the most.
        drop: Against the dense model, as printed; None of the dense one.
    """

    throughput: float
    drop: Optional[float]


@dataclass(frozen=True)
class PaperSize:
    """One size of the paper.

    Args:
        name: As the paper has it, of the dense model.
        models: Experts and top-k -> what it measured.
    """

    name: str
    models: Mapping[tuple[int, int], PaperModel]


@cache
def _load() -> Mapping[str, PaperSize]:
    sizes = {}
    for name, size in yaml.safe_load(_FILE.read_text()).items():
        models: dict[tuple[int, int], PaperModel] = {}
        models[1, 1] = PaperModel(float(size['dense']), None)
        for top_k, model in size['top_k'].items():
            models[_EXPERTS, top_k] = PaperModel(
                float(model['throughput']),
                model['drop'],
            )
        sizes.update(dict.fromkeys(size['sizes'], PaperSize(name, models)))
    return sizes


def paper_size(size: str) -> Optional[PaperSize]:
    """What the paper has of a study's size, if anything."""
    return _load().get(size.lower())


def paper_model(size: str, arm: Arm) -> Optional[PaperModel]:
    """What the paper has of what a study serves, if anything."""
    found = None if arm.name else paper_size(size)
    return found and found.models.get((arm.experts, arm.top_k))
