"""The callback ``icl_results``: keeps what evaluations measured."""

import re
import time
from pathlib import Path
from typing import Any, Optional

from composer import Callback, Logger, State
from composer.utils import dist

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.gauntlet.gauntlets import read_gauntlet
from foundry_upcycle.gauntlet.results import write_results

__all__ = ['ICLResults']


class ICLResults(Callback):
    """Writes the results of in-context tasks, example by example, as JSON.

    Foundry logs the accuracy of each task; to say whether two accuracies
    differ takes the number of examples, and, better, which were right. This
    callback logs the one (``icl/n_examples/<task>``) and writes both to a file
    that ``foundry-upcycle gauntlet score`` reads:

    - ``<folder>/<run_name>-ba<batch>.json`` of an evaluation in training,
    - ``<folder>/<model>.json`` of one alone, the model being its ``load_path``
      or Hugging Face name with dashes for slashes, as Foundry evaluates all
      models of a YAML under one run name.

    While an evaluation runs, the file ends in ``.partial`` and has the tasks
    that are done.

    Args:
        folder: Where to write.
        eval_gauntlet: The gauntlet's YAML. If it says that tasks are left out,
            as their files were missing, the run says so before it starts.
        overwrite: Whether an evaluation alone may replace a file.

    Raises:
        ConfigError: The file exists, or the gauntlet's can't be read.
    """

    def __init__(
        self,
        folder: str,
        eval_gauntlet: Optional[str] = None,
        overwrite: bool = False,
    ):
        self.folder = Path(folder)
        self.eval_gauntlet = eval_gauntlet
        self.overwrite = overwrite
        self._tasks: dict[str, Any] = {}
        self._metric = ''
        self._correct: list[int] = []
        self._collected: Any = None
        self._started = 0.0

    def init(self, state: State, logger: Logger) -> None:
        del logger
        if self.eval_gauntlet is not None:
            _announce(self.eval_gauntlet)

    def eval_standalone_start(self, state: State, logger: Logger) -> None:
        del logger
        path = self._path(state)
        if path.exists() and not self.overwrite:
            raise ConfigError(
                'callbacks.icl_results.folder',
                str(self.folder),
                f'{path} holds results of an earlier evaluation.',
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
        correct = _interleaved(by_rank)
        if not correct:
            return  # Held-out text, or another kind of evaluation.
        seconds = time.monotonic() - self._started
        label = str(state.dataloader_label)
        self._tasks[label] = {
            'metric': self._metric,
            'accuracy': sum(correct) / len(correct),
            'n': len(correct),
            'correct': ''.join(map(str, correct)),
            'seconds': round(seconds, 3),
        }
        logger.log_metrics({f'icl/n_examples/{label}': len(correct)})
        self._write(state, self._partial_path(state))

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

    def _path(self, state: State) -> Path:
        if state.train_dataloader is None:
            return self.folder / f'{_slug(_source(state))}.json'
        batch = state.timestamp.batch.value
        return self.folder / f'{_slug(state.run_name)}-ba{batch}.json'

    def _partial_path(self, state: State) -> Path:
        path = self._path(state)
        return path.with_name(f'{path.name}.partial')

    def _write(self, state: State, path: Path) -> None:
        if dist.get_global_rank() != 0:
            return
        write_results(
            path,
            model={
                'name': type(state.model).__name__,
                'source': _source(state),
                'n_params': sum(p.numel() for p in state.model.parameters()),
            },
            run_name=state.run_name,
            batch=state.timestamp.batch.value,
            precision=state.precision.value,
            tasks=self._tasks,
        )

    def _finish(self, state: State) -> None:
        if self._tasks:
            self._write(state, self._path(state))
            if dist.get_global_rank() == 0:
                self._partial_path(state).unlink(missing_ok=True)
        self._tasks = {}


def _interleaved(by_rank: list[list[int]]) -> list[int]:
    """All examples in the order of the file, as the sampler dealt them out."""
    return [
        by_rank[rank][index]
        for index in range(max(map(len, by_rank)))
        for rank in range(len(by_rank))
        if index < len(by_rank[rank])
    ]


def _source(state: State) -> str:
    """Where the weights come from, as far as the run knows."""
    if state.load_path is not None:
        return str(state.load_path)
    config = getattr(state.model, 'config', None)
    return getattr(config, '_name_or_path', '') or state.run_name


def _slug(name: str) -> str:
    return re.sub(r'[^\w.]+', '-', name.removesuffix('.pt')).strip('-')


def _announce(eval_gauntlet: str) -> None:
    gauntlet = read_gauntlet(eval_gauntlet)
    if not gauntlet.left_out or dist.get_global_rank() != 0:
        return
    n_scored = len(gauntlet.benchmarks)
    print(
        f'eval_gauntlet {gauntlet.name}: left out, as their files are '
        f"missing: {', '.join(gauntlet.left_out)}. "
        f"{', '.join(gauntlet.averages)} is over the other {n_scored} of "
        f'{n_scored + len(gauntlet.left_out)} tasks.',
        flush=True,
    )
