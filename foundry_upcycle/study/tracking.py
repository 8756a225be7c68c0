"""Reads the metrics of runs back from MLflow."""

from contextlib import contextmanager
from typing import Iterator, Mapping, Optional

import numpy as np

from foundry_upcycle.errors import ConfigError

__all__ = ['Tracking']


class Tracking:
    """The runs of one MLflow experiment, by the names that Composer gave them.

    Args:
        uri: Where Foundry's MLflow logger wrote: a folder, a database or a
            tracking server.
        experiment: Name of the experiment.

    Raises:
        ConfigError: Here and by all methods, that the store can't be read.
    """

    def __init__(self, uri: str, experiment: str):
        # It takes seconds to import.
        from mlflow import MlflowClient
        self._uri = uri
        with self._errors():
            self._client = MlflowClient(uri)
        self._experiment = experiment
        self._ids: dict[str, str] = {}

    def latest(self, run_name: str) -> Mapping[str, float]:
        """The last value of each metric; none where there is no such run."""
        with self._errors():
            run_id = self._run_id(run_name)
            if run_id is None:
                return {}
            return self._client.get_run(run_id).data.metrics

    def history(
        self,
        run_name: str,
        key: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, ascending; empty where there is none.

        A run that resumed has logged the steps since its last checkpoint
        twice; the later value counts.
        """
        with self._errors():
            run_id = self._run_id(run_name)
            logged = [] if run_id is None else self._client.get_metric_history(
                run_id,
                key,
            )
        by_step = {
            metric.step: metric.value
            for metric in sorted(logged, key=lambda metric: metric.timestamp)
        }
        steps = sorted(by_step)
        return np.array(steps), np.array([by_step[step] for step in steps])

    def _run_id(self, run_name: str) -> Optional[str]:
        if run_name not in self._ids:
            experiment = self._client.get_experiment_by_name(self._experiment)
            runs = self._client.search_runs(
                [experiment.experiment_id],
                filter_string=f"tags.run_name = '{run_name}'",
            ) if experiment else []
            if not runs:
                return None
            self._ids[run_name] = runs[0].info.run_id
        return self._ids[run_name]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Of MLflow, or of whatever library the kind of store takes.
            raise ConfigError(
                'tracking_uri',
                self._uri,
                f"it can't be read ({error}).",
                'see that the store is there and the server runs.',
            ) from error
