"""The callback ``icl_results``: keeps what evaluations measured."""

import hashlib
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any, Mapping, Optional, Sized

from composer import Callback, Logger, State
from composer.utils import dist

from foundry_upcycle.checkpoints.sync import raise_together
from foundry_upcycle.errors import ConfigError, UpcyclingWarning
from foundry_upcycle.files import fix_for, reason_of, require_place
from foundry_upcycle.gauntlet.gauntlets import announce_left_out
from foundry_upcycle.gauntlet.results import write_results
from foundry_upcycle.gauntlet.tasks import remove_links

__all__ = ['ICLResults']

# Of a file's name, which may have 255 bytes with what is added to it.
_LONGEST = 120

# By evaluations in this process: of the models of one YAML.
_written: set[Path] = set()


class ICLResults(Callback):
    """Writes the results of in-context tasks, example by example, as JSON.

    Foundry logs the accuracy of each task; to say whether two accuracies
    differ takes the number of examples, and, better, which were right. This
    callback logs the one (``icl/n_examples/<task>``) and writes both to a file
    that ``foundry-upcycle gauntlet score`` reads:

    - ``<folder>/<run_name>-ba<batch>.json`` of an evaluation in training,
    - ``<folder>/<model>.json`` of one alone, the model being its ``load_path``
      or Hugging Face name with dashes for slashes, as Foundry evaluates all
      models of a YAML under one run name. If a YAML has a model of the same
      source twice, the second is ``<model>-2.json``.

    While an evaluation runs, the file ends in ``.partial`` and has the tasks
    that are done.

    Of a task with several metrics, the results of the last one are kept.

    Args:
        folder: Where to write.
        eval_gauntlet: The gauntlet's YAML. If it says that tasks are left out,
            as their files were missing, the run says so before it starts.
        overwrite: Whether an evaluation alone may replace the file of an
            earlier one.

    Raises:
        ConfigError: The file exists or can't be written, or the gauntlet's
            can't be read.
    """

    def __init__(
        self,
        folder: str,
        eval_gauntlet: Optional[str] = None,
        overwrite: bool = False,
    ):
        for key, value, ok, accepted in (
            ('folder', folder, _is_path(folder), 'a folder'),
            (
                'eval_gauntlet',
                eval_gauntlet,
                eval_gauntlet is None or _is_path(eval_gauntlet),
                "null, or the path of the gauntlet's YAML",
            ),
            ('overwrite', overwrite, type(overwrite) is bool, 'true or false'),
        ):
            if not ok:
                raise ConfigError(
                    f'callbacks.icl_results.{key}',
                    value,
                    'icl_results cannot use it.',
                    f'set it to {accepted}.',
                )
        self.folder = Path(folder)
        self.eval_gauntlet = eval_gauntlet
        self.overwrite = overwrite
        self._model: dict[str, Any] = {}
        self._path: Optional[Path] = None
        self._tasks: dict[str, Any] = {}
        self._metric = ''
        self._correct: list[int] = []
        self._collected: Any = None
        self._started = 0.0

    def init(self, state: State, logger: Logger) -> None:
        del logger
        # Here the model is whole: neither sharded nor in a wrapper.
        config = getattr(state.model, 'config', None)
        self._model = {
            'name': type(state.model).__name__,
            'source': getattr(config, '_name_or_path', None) or None,
            'n_params': sum(p.numel() for p in state.model.parameters()),
        }
        with raise_together():
            if dist.get_global_rank() == 0:
                _require_writable(self.folder)
        if self.eval_gauntlet is not None:
            announce_left_out(self.eval_gauntlet)
        # All ranks have read their tasks; the next model of this evaluation
        # must not find the links.
        dist.barrier()
        if dist.get_local_rank() == 0:
            remove_links()
        dist.barrier()

    def _require_place(self, path: Path) -> None:
        try:
            require_place(path)
        except OSError as error:
            raise ConfigError(
                'callbacks.icl_results.folder',
                str(self.folder),
                f"results can't be written there ({reason_of(error)}).",
                fix_for(error),
            ) from error

    def after_load(self, state: State, logger: Logger) -> None:
        del logger
        if state.load_path is not None:
            self._model['source'] = str(state.load_path)

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        del logger
        if state.train_dataloader is not None:
            return  # The first evaluation of a training, which may restart.
        self._path = self._new_path(state)
        self._require_place(self._path)
        if self._path.exists() and not self.overwrite:
            raise ConfigError(
                'callbacks.icl_results.folder',
                str(self.folder),
                f'{self._path} holds results of an earlier evaluation.',
                'name another folder, or set overwrite: true.',
            )

    def eval_start(self, state: State, logger: Logger) -> None:
        del logger
        self._correct = []
        self._collected = state.metric_outputs
        self._started = time.monotonic()

    def eval_before_forward(self, state: State, logger: Logger) -> None:
        del logger
        self._collect(state)  # Of the microbatch before.

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        del logger
        self._collect(state)

    def eval_end(self, state: State, logger: Logger) -> None:
        by_rank = dist.all_gather_object(self._correct)
        n = _n_examples(state.dataloader)
        # After these may be some that fill the last batch: Foundry counts them
        # where records have fewer choices than the first.
        correct = _interleaved(by_rank)[:n]
        label = str(state.dataloader_label)
        if not correct:
            _warn_if_in_context(label, state.eval_metrics.get(label, {}))
            return
        seconds = time.monotonic() - self._started
        self._tasks[label] = {
            'metric': self._metric,
            'accuracy': sum(correct) / len(correct),
            'n': len(correct),
            'correct': ''.join(map(str, correct)),
            'seconds': round(seconds, 3),
        }
        logger.log_metrics({f'icl/n_examples/{label}': len(correct)})
        self._write(state, _partial(self._path_of(state)))

    def eval_after_all(self, state: State, logger: Logger) -> None:
        del logger
        self._finish(state)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        del logger
        self._finish(state)

    def _collect(self, state: State) -> None:
        # Composer makes a new mapping for each microbatch that it scores; the
        # last one of a batch is still there at the next.
        outputs = state.metric_outputs
        if outputs is not self._collected and 'result' in outputs:
            self._metric = outputs['metric_name'][0]
            self._correct += map(int, outputs['result'])
        self._collected = outputs

    def _path_of(self, state: State) -> Path:
        if self._path is not None:
            return self._path
        batch = state.timestamp.batch.value
        return self.folder / f'{_slug(state.run_name)}-ba{batch}.json'

    def _new_path(self, state: State) -> Path:
        """A file that no model before this one of the YAML has."""
        name = _slug(self._model['source'] or state.run_name)
        path = self.folder / f'{name}.json'
        count = 1
        while path.absolute() in _written:
            count += 1
            path = self.folder / f'{name}-{count}.json'
        return path

    def _write(self, state: State, path: Path) -> None:
        if dist.get_global_rank() == 0:
            write_results(
                path,
                model=self._model,
                run_name=state.run_name,
                batch=state.timestamp.batch.value,
                precision=state.precision.value,
                tasks=self._tasks,
            )

    def _finish(self, state: State) -> None:
        if self._tasks:
            path = self._path_of(state)
            self._write(state, path)
            if dist.get_global_rank() == 0:
                _partial(path).unlink(missing_ok=True)
            if self._path is not None:
                _written.add(path.absolute())
        self._tasks = {}
        self._path = None


def _require_writable(folder: Path) -> None:
    # Not after hours of evaluation.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError('no permission to write there')
    except OSError as error:
        raise ConfigError(
            'callbacks.icl_results.folder',
            str(folder),
            f'results could not be written to it ({error}).',
            'name a folder that is there, or can be made.',
        ) from error


def _is_path(value: Any) -> bool:
    is_text = isinstance(value, (str, os.PathLike)) and str(value)
    return bool(is_text) and '\0' not in str(value)


def _partial(path: Path) -> Path:
    return path.with_name(f'{path.name}.partial')


def _interleaved(by_rank: list[list[int]]) -> list[int]:
    """All examples in the order of the file, as the sampler dealt them out."""
    return [
        by_rank[rank][index]
        for index in range(max(map(len, by_rank)))
        for rank in range(len(by_rank))
        if index < len(by_rank[rank])
    ]


def _n_examples(dataloader: Any) -> Optional[int]:
    dataset = getattr(dataloader, 'dataset', None)
    return len(dataset) if isinstance(dataset, Sized) else None


def _slug(name: str) -> str:
    slug = re.sub(r'[^\w.]+', '-', name.removesuffix('.pt')).strip('-')
    if len(slug) <= _LONGEST:
        return slug
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f'{digest}{slug[8 - _LONGEST:]}'


def _warn_if_in_context(label: str, metrics: Mapping[str, Any]) -> None:
    if any(name.startswith('InContextLearning') for name in metrics):
        warnings.warn(
            f'{label}: no results are kept, as the last of its metrics, '
            f"{', '.join(metrics)}, tells none of single examples. Fix: leave "
            'only an accuracy in metric_names.',
            UpcyclingWarning,
            stacklevel=2,
        )
