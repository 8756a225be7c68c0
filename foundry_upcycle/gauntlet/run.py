"""Scores files of results: from their names to tables, JSON and a figure."""

import io
import json
import os
from pathlib import Path
from typing import Mapping, Optional, Sequence

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.files import (
    fix_for,
    reason_of,
    require_place,
    write_together,
)
from foundry_upcycle.gauntlet.gauntlets import read_gauntlet
from foundry_upcycle.gauntlet.mlflow_run import MLFLOW
from foundry_upcycle.gauntlet.report import Outcome, render_report, to_json
from foundry_upcycle.gauntlet.results import ModelResults, read_results
from foundry_upcycle.gauntlet.scores import compare, score

__all__ = ['run']

_FILES = ('scores.png', 'scores.json', 'report.md')


def run(
    results: Sequence[str],
    gauntlets: Sequence[str],
    baseline: Optional[str] = None,
    out: Optional[str] = None,
    n_examples: Optional[Mapping[str, int]] = None,
    overwrite: bool = False,
) -> str:
    """Scores models and compares them with one of them.

    Args:
        results: For each model, ``LABEL=SOURCE`` or ``SOURCE``, as
            ``read_results`` takes it. A text is a source if it is an existing
            path or starts with ``mlflow:``; of any other, what stands before
            the first ``=`` is the label.
        gauntlets: Names or files of gauntlets.
        baseline: Label of the model to compare the others with; None compares
            none.
        out: Folder to write ``report.md``, ``scores.json`` and ``scores.png``
            into.
        n_examples: See ``read_results``.
        overwrite: Whether ``out`` may hold something; of that, only files of
            these names are replaced.

    Returns:
        The report, as Markdown.

    Raises:
        ConfigError: Something can't be read, two models or gauntlets have one
            name, there is no such baseline, or ``out`` is not empty or can't
            be written.
    """
    if out is not None:
        _check_folder(Path(out), overwrite)
    models = [read_results(*_split(text), n_examples) for text in results]
    kinds = [read_gauntlet(name) for name in gauntlets]
    _check_unique('results', [model.label for model in models])
    _check_unique('gauntlet', [kind.name for kind in kinds])
    start = _find(models, baseline)
    outcomes = [
        Outcome(
            kind,
            [score(model, kind)
             for model in models],
            [
                compare(model, start, kind)
                for model in models
                if start and model is not start
            ],
        )
        for kind in kinds
    ]
    report = render_report(models, outcomes)
    if out is not None:
        try:
            _write(Path(out), report, models, outcomes)
        except OSError as error:
            raise ConfigError(
                'out',
                out,
                f"it can't be written ({reason_of(error)}).",
                fix_for(error),
            ) from error
    return report


def _split(text: str) -> tuple[str, Optional[str]]:
    """Source and label, if it has one, of ``LABEL=SOURCE`` or ``SOURCE``."""
    label, equals, source = text.partition('=')
    if not equals or text.startswith(MLFLOW) or os.path.exists(text):
        return text, None
    return source, label


def _check_unique(key: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                key,
                name,
                'two have this name.',
                'name each once; results can be given as LABEL=SOURCE.',
            )


def _find(
    models: Sequence[ModelResults],
    label: Optional[str],
) -> Optional[ModelResults]:
    if label is None:
        return None
    by_label = {model.label: model for model in models}
    if label not in by_label:
        raise ConfigError(
            'baseline',
            label,
            'no results have this label.',
            f"take one of {', '.join(by_label)}.",
        )
    return by_label[label]


def _check_folder(out: Path, overwrite: bool) -> None:
    try:
        is_usable = not out.exists() or (
            out.is_dir() and (overwrite or not any(out.iterdir()))
        )
        for name in _FILES if is_usable else ():
            require_place(out / name)
    except OSError as error:  # As of a name that is too long.
        raise ConfigError(
            'out',
            str(out),
            f"it can't be made or read ({reason_of(error)}).",
            fix_for(error),
        ) from error
    if not is_usable:
        raise ConfigError(
            'out',
            str(out),
            'it is a file, or a folder that is not empty.',
            'name another folder, or pass --overwrite to replace report.md, '
            'scores.json and scores.png in it.',
        )


def _write(
    out: Path,
    report: str,
    models: Sequence[ModelResults],
    outcomes: Sequence[Outcome],
) -> None:
    # It takes a second to import.
    from foundry_upcycle.gauntlet.figure import plot_scores

    figure = io.BytesIO()
    plot_scores(outcomes, figure)
    write_together(
        out,
        {
            'scores.png':
            figure.getvalue(),
            'scores.json':
            json.dumps(to_json(models, outcomes), indent=1) + '\n',
            'report.md':
            f'{report}\n![Scores of categories and averages](scores.png)\n',
        },
    )
