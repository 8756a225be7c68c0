"""What a study YAML says, checked."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Mapping, Optional

from omegaconf import OmegaConf

from foundry_upcycle.documents import DocumentError, read_config
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.flops import MAX_SIZE
from foundry_upcycle.study.existing import ExistingCheckpoint
from foundry_upcycle.study.section import (
    Section,
    check_name,
    distinct,
    has_instead,
    is_positive,
    named,
    require_once,
    yaml_beside,
)
from foundry_upcycle.study.shrunk_start import ShrunkStart

__all__ = [
    'Hardware',
    'ModelGrid',
    'Phase',
    'Study',
    'number_text',
    'read_study',
]

# What NumPy seeds its generators with, at the most.
_MAX_SEED = 2**32 - 1
# More than any study has.
_MAX_FRACTION = 1_000_000
_MAX_FLOPS = 1e30
# Bytes of a file's name.
_MAX_NAME = 255


@dataclass(frozen=True)
class Phase:
    """A train YAML, and what a study changes in it.

    Args:
        yaml: The flat YAML.
        overrides: Settings that replace the YAML's, nested as there.
        learning_rates: None: the YAML's own. One: that one. Several: a sweep
            decides.
        eval_top_k: Experts a token goes to, with each of which it is evaluated;
            its own is always one of them.
        shrunk: What it starts from; None: the dense model.
    """

    yaml: Path
    overrides: Mapping[str, Any]
    learning_rates: tuple[float, ...] = ()
    eval_top_k: tuple[int, ...] = ()
    shrunk: Optional[ShrunkStart] = None


@dataclass(frozen=True)
class ModelGrid:
    """The runs of one dense model.

    Args:
        name: What names its runs.
        pretrain: How the dense model is trained. None: it is there.
        durations: Name -> how long, as ``max_duration`` has it (``tok``, ``ba``),
            or the checkpoint of a pretraining that is over.
        budgets: FLOPs of each second phase, ascending.
        unit: Of the budgets: FLOPs, or fractions of those of pretraining.
        arms: Name -> how the second phase is trained.
        paper: The model of the paper that this is, such as ``436M``: its
            points are drawn behind those of a duration of the same name that is
            as long.
        sweep_at: Duration and budget at which learning rates are swept. None:
            the cheapest pretraining and the smallest budget (paper, section 3).
    """

    name: str
    pretrain: Optional[Phase]
    durations: Mapping[str, str | ExistingCheckpoint]
    budgets: tuple[float, ...]
    arms: Mapping[str, Phase]
    unit: Literal['fraction', 'FLOPs'] = 'fraction'
    paper: Optional[str] = None
    sweep_at: Optional[tuple[str, float]] = None

    def budget_flops(self, budget: float, pretraining: float) -> float:
        """FLOPs of a second phase.

        Args:
            budget: In the model's unit.
            pretraining: FLOPs of the dense start.
        """
        return budget * pretraining if self.unit == 'fraction' else budget

    def budget_text(self, budget: float, form: str = 'g') -> str:
        """A budget as one reads it: ``x0.4`` of pretraining, ``2e15 FLOPs``."""
        text = number_text(budget, form)
        return f'x{text}' if self.unit == 'fraction' else f'{text} FLOPs'


@dataclass(frozen=True)
class Hardware:
    """What an estimate of the time assumes.

    Args:
        name: One device.
        peak_flops: FLOPs a second of one device, at the most.
        mfu: Model FLOPs utilisation: the share of them that training reaches.
    """

    name: str
    peak_flops: float
    mfu: float

    def hours(self, flops: float) -> float:
        """Hours that one device takes."""
        return flops / (self.peak_flops * self.mfu) / 3600


@dataclass(frozen=True)
class Study:
    """A comparison: dense models, and ways on from them at equal FLOPs.

    Args:
        name: The MLflow experiment.
        folder: Where everything goes that is planned and run.
        tracking_uri: Of MLflow.
        seeds: Of the second phase (order of data, routers).
        models: The runs.
        hardware: What an estimate of the time assumes.
        variables: Replace those of the same name in all YAMLs.
        evaluation: An eval YAML; its ``models`` are replaced.
    """

    name: str
    folder: Path
    tracking_uri: str
    seeds: tuple[int, ...]
    models: tuple[ModelGrid, ...]
    hardware: Hardware
    variables: Mapping[str, Any]
    evaluation: Optional[Path] = None


def number_text(value: float, form: str = 'g') -> str:
    """A number as names have it: ``0.4``, ``2e15``."""
    return f'{value:{form}}'.replace('e+', 'e')


def read_study(path: str | Path) -> Study:
    """Reads a study YAML; the YAMLs that it names are relative to its folder.

    Raises:
        ConfigError: It can't be read, lacks a key, or has one that is unknown
            or can't be used.
    """
    path = Path(path)
    section = Section('', _load(path))
    folder = _folder(section)
    models = section.take('models', dict)
    name = section.take('name', str)
    if len(os.fsencode(name)) > _MAX_NAME:
        raise ConfigError(
            'name',
            name,
            'MLflow has no experiments with names as long.',
            f'write at most {_MAX_NAME} bytes.',
        )
    study = Study(
        name=name,
        folder=folder,
        tracking_uri=section.take('tracking_uri', str, f'{folder}/mlruns'),
        seeds=distinct(
            section,
            'seeds',
            (int, ),
            0,
            _MAX_SEED,
            'write whole numbers.',
        ),
        models=tuple(
            _model(path.parent, section.inside(f'models.{name}', value), name)
            for name, value in models.items()
        ),
        hardware=_hardware(section),
        variables=section.take('variables', dict, {}),
        evaluation=yaml_beside(path.parent, section, 'evaluation')
        if section.has('evaluation') else None,
    )
    section.refuse_others()
    return study


def _folder(section: Section) -> Path:
    folder = section.take('folder', str)
    if max(len(os.fsencode(part)) for part in folder.split('/')) > _MAX_NAME:
        raise ConfigError(
            section.key('folder'),
            folder,
            'no file system has folders with names as long.',
            f'write at most {_MAX_NAME} bytes between two slashes.',
        )
    if '://' in folder:
        raise ConfigError(
            section.key('folder'),
            folder,
            "a study's folder is local.",
            'name a folder on a disk, shared by the machines that train.',
        )
    return Path(folder)


def _load(path: Path) -> dict[Any, Any]:
    problem, content = 'it holds no mapping of keys to values.', None
    try:
        # As Foundry reads its YAMLs: 5e-5 is a number, and no key is twice.
        content = OmegaConf.to_container(read_config(path))
    except DocumentError as error:
        problem = str(error)
    if not isinstance(content, dict):
        raise ConfigError(
            'study',
            str(path),
            problem,
            'name a study YAML, such as yamls/study_430m.yaml.',
        )
    return content


def _model(folder: Path, section: Section, name: str) -> ModelGrid:
    check_name(section.prefix, name)
    in_flops = has_instead(section, 'budgets', ('fractions', ))
    model = ModelGrid(
        name=name,
        **_pretraining(folder, section),
        budgets=_budgets(section, in_flops),
        unit='FLOPs' if in_flops else 'fraction',
        arms={
            each: _arm(folder, section.inside(f'arms.{each}', value))
            for each, value in named(section, 'arms').items()
        },
        paper=section.take('paper', str, None),
    )
    if section.has('sweep_at'):
        model = replace(model, sweep_at=_sweep_at(section, model))
    section.refuse_others()
    for phase in model.arms.values():
        _check_shrunk(phase, model.arms)
    return model


def _check_shrunk(phase: Phase, arms: Mapping[str, Phase]) -> None:
    """Refuses an arm that starts from what is no mixture of the study."""
    start = phase.shrunk
    if start is None:
        return
    others = [name for name, other in arms.items() if other.shrunk is None]
    if start.arm not in others:
        raise ConfigError(
            f'{start.key}.arm',
            start.arm,
            'the model has no such arm, or it is shrunk itself.',
            f"write one of {', '.join(others)}.",
        )
    if not start.heal and phase.learning_rates:
        raise ConfigError(
            f'{start.key}.heal',
            start.heal,
            'nothing is trained, and the arm has lr.',
            'raise it, or remove lr.',
        )


def _sweep_at(section: Section, model: ModelGrid) -> tuple[str, float]:
    place = section.inside('sweep_at', section.take('sweep_at', dict))
    unit = 'fraction' if model.unit == 'fraction' else 'budget'
    found = {}
    for key, kind, there in (
        ('duration', str, tuple(model.durations)),
        (unit, (float, int), model.budgets),
    ):
        found[key] = place.take(key, kind)
        if found[key] not in there:
            raise ConfigError(
                place.key(key),
                found[key],
                'the model has none like it.',
                f"write one of {', '.join(map(str, there))}.",
            )
    place.refuse_others()
    return found['duration'], found[unit]


def _pretraining(folder: Path, section: Section) -> dict[str, Any]:
    """What the study trains first, or checkpoints that are there."""
    if has_instead(section, 'checkpoints', ('durations', 'pretrain')):
        checkpoints = {
            each: _checkpoint(section.inside(f'checkpoints.{each}', value))
            for each, value in named(section, 'checkpoints').items()
        }
        return {'pretrain': None, 'durations': checkpoints}
    durations = {
        each: str(value)
        for each, value in named(section, 'durations').items()
    }
    pretrain = section.inside('pretrain', section.take('pretrain', dict))
    return {'pretrain': _phase(folder, pretrain), 'durations': durations}


def _checkpoint(section: Section) -> ExistingCheckpoint:
    path = section.take('path', str)
    spent = {
        key: section.take(key, (float, int), None)
        for key in ('tokens', 'flops')
    }
    section.refuse_others()
    given = {key: value for key, value in spent.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(
            section.prefix,
            given,
            'what pretraining cost follows from one of tokens and flops.',
            'write the tokens that the model has seen, or the FLOPs.',
        )
    ((key, value), ) = given.items()
    if not is_positive(value) or value > _MAX_FLOPS:
        raise ConfigError(
            section.key(key),
            value,
            'no model has been trained for as many.',
            f'write a number above 0, up to {_MAX_FLOPS:g}, such as 2.0e12.',
        )
    return ExistingCheckpoint.named(section.key('path'), path, **given)


def _budgets(section: Section, in_flops: bool) -> tuple[float, ...]:
    if in_flops:
        key, maximum = 'budgets', _MAX_FLOPS
        fix = 'write FLOPs above 0, such as 2.0e15.'
    else:
        key, maximum = 'fractions', _MAX_FRACTION
        fix = 'write fractions of the pretraining FLOPs above 0, such as 0.1.'
    values = distinct(section, key, (float, int), None, maximum, fix)
    return tuple(sorted(values))


def _arm(folder: Path, section: Section) -> Phase:
    top_k: tuple[int, ...] = ()
    if section.has('eval_top_k'):
        top_k = distinct(
            section,
            'eval_top_k',
            (int, ),
            1,
            MAX_SIZE,
            'write numbers of experts, such as [1, 2].',
        )
    shrunk = ShrunkStart.read(
        section.inside('shrink', section.take('shrink', dict)),
    ) if section.has('shrink') else None
    return replace(
        _phase(folder, section),
        eval_top_k=top_k,
        shrunk=shrunk,
    )


def _phase(folder: Path, section: Section) -> Phase:
    lr = section.take('lr', (float, list), ())
    if isinstance(lr, float):
        lr = [lr]
    for rate in lr:
        if not is_positive(rate):
            raise ConfigError(
                section.key('lr'),
                rate,
                'it is not a learning rate.',
                'write a number above 0, such as 5e-5, or a list of them to '
                'sweep.',
            )
    require_once(section.key('lr'), lr)
    phase = Phase(
        yaml=yaml_beside(folder, section, 'yaml'),
        overrides=section.take('overrides', dict, {}),
        learning_rates=tuple(map(float, lr)),
    )
    section.refuse_others()
    return phase


def _hardware(section: Section) -> Hardware:
    hardware = section.inside('hardware', section.take('hardware', dict))
    found = Hardware(
        name=hardware.take('name', str),
        peak_flops=hardware.take('peak_flops', (float, int)),
        mfu=hardware.take('mfu', (float, int)),
    )
    hardware.refuse_others()
    for key, value in (('peak_flops', found.peak_flops), ('mfu', found.mfu)):
        if not is_positive(value) or (key == 'mfu' and value > 1):
            raise ConfigError(
                hardware.key(key),
                value,
                'no device computes so many FLOPs a second.',
                'peak_flops is of one device, above 0; mfu is the share of '
                'them that training reaches, up to 1.',
            )
    return found
