"""Reads the metrics of runs back from MLflow."""

from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import (
    Any,
    Collection,
    Iterator,
    Mapping,
    Optional,
    Protocol,
    Sequence,
)

import numpy as np

from foundry_upcycle.documents import read_yaml
from foundry_upcycle.errors import ConfigError
from foundry_upcycle.files import write_whole
from foundry_upcycle.gauntlet.mlflow_run import store_folder

__all__ = ['Tracking']

# The tag by which Composer finds the run that it resumes.
_NAME = 'run_name'
# What an experiment or a run is, in its folder.
_ABOUT = 'meta.yaml'


class Tracking:
    """The runs of one MLflow experiment, by the names that Composer gave them.

    Runs are searched once, and a metric is read once: what is logged later is
    seen after ``refresh``.

    Args:
        uri: Where Foundry's MLflow logger wrote: a folder, a database or a
            tracking server.
        experiment: Name of the experiment.

    Raises:
        ConfigError: Here and by all methods, that the store can't be read.
    """

    def __init__(self, uri: str, experiment: str):
        self._uri = uri
        self._experiment = experiment
        self.refresh()
        with self._errors():
            folder = store_folder(uri)
            self._store = _Server(uri) if folder is None else _Folder(folder)

    def refresh(self) -> None:
        """Forgets what was read."""
        self._runs: Optional[Mapping[str, Sequence[_LoggedRun]]] = None
        self._histories: dict[tuple[str, str], tuple[Any, Any]] = {}

    def make_experiment(self) -> None:
        """Makes the experiment, if it isn't there.

        Of runs that start together, each would make it.
        """
        from mlflow import MlflowClient
        with self._errors():
            client = MlflowClient(self._uri)
            if client.get_experiment_by_name(self._experiment) is None:
                client.create_experiment(self._experiment)

    def keys(self, run_name: str) -> Collection[str]:
        """Names of a run's metrics; none where there is no such run."""
        with self._errors():
            run = self._run(run_name)
            return () if run is None else run.keys

    def last(self, run_name: str, key: str) -> Optional[float]:
        """A metric's value at its last step; None where there is none."""
        _, values = self.history(run_name, key)
        return float(values[-1]) if len(values) else None

    def history(
        self,
        run_name: str,
        key: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, ascending; empty where there is none.

        A run that resumed has logged the steps since its last checkpoint
        twice; the later value counts.
        """
        place = run_name, key
        if place not in self._histories:
            with self._errors():
                run = self._run(run_name)
                if run is None or key not in run.keys:
                    return np.array([], int), np.array([])
                self._histories[place] = _once_each(run.logged(key))
        return self._histories[place]

    def rename(self, run_name: str, to: str) -> None:
        """Gives all runs of a name another."""
        with self._errors():
            for run in self._all_runs().get(run_name, ()):
                run.rename(to)
        self.refresh()

    def _run(self, name: str) -> Optional['_LoggedRun']:
        # Of several of a name, Composer resumes the first.
        return next(iter(self._all_runs().get(name, ())), None)

    def _all_runs(self) -> Mapping[str, Sequence['_LoggedRun']]:
        if self._runs is None:
            runs = defaultdict(list)
            for name, run in self._store.runs(self._experiment):
                runs[name].append(run)
            self._runs = runs
        return self._runs

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


def _once_each(logged_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; of a step that was logged twice, the later value."""
    if not len(logged_N3):  # The first value is being written.
        return np.array([], int), np.array([])
    times, values, steps = logged_N3.T
    order = np.lexsort((times, steps))  # Keeps the order of equal ones.
    steps, values = steps[order], values[order]
    is_last = np.append(steps[1:] != steps[:-1], True)
    return steps[is_last].astype(int), values[is_last]


class _LoggedRun(Protocol):
    """A run of any store: what it has logged."""

    @property
    def keys(self) -> Collection[str]:
        """Names of its metrics."""
        ...

    def logged(self, key: str) -> np.ndarray:
        """(N, 3) time, value and step of each value, as they came."""
        ...

    def rename(self, name: str) -> None:
        """Gives it another name."""
        ...


# Of an experiment, with their names.
_Runs = Iterator[tuple[str, _LoggedRun]]


class _Server:
    """A database or a tracking server, which keeps last values by themselves.

    Args:
        uri: Where it is.
    """

    def __init__(self, uri: str):
        from mlflow import MlflowClient
        self._client = MlflowClient(uri)

    def runs(self, experiment: str) -> _Runs:
        """An experiment's runs, the latest first."""
        found = self._client.get_experiment_by_name(experiment)
        if found is None:
            return
        token, is_first = None, True
        while token or is_first:
            page = self._client.search_runs(
                [found.experiment_id],
                page_token=token,
            )
            for run in page:
                name = run.data.tags.get(_NAME, '')
                yield name, _ServedRun(self._client, run)
            token, is_first = page.token, False


class _ServedRun:

    def __init__(self, client: Any, run: Any):
        self._client = client
        self._id = run.info.run_id
        self.keys: Collection[str] = run.data.metrics.keys()

    def logged(self, key: str) -> np.ndarray:
        history = self._client.get_metric_history(self._id, key)
        return np.array([(m.timestamp, m.value, m.step) for m in history])

    def rename(self, name: str) -> None:
        self._client.set_tag(self._id, _NAME, name)


class _Folder:
    """A folder of runs, each a folder with a file for each metric.

    MLflow takes seconds to import, its search parses all values of all runs,
    and each look at a metric lists all files of the run: minutes, of a study
    with long runs.

    Args:
        root: Where it is.
    """

    def __init__(self, root: Path):
        self._root = root
        # As MLflow does: one that is gone later can't be read.
        root.mkdir(parents=True, exist_ok=True)

    def runs(self, experiment: str) -> _Runs:
        """An experiment's runs, the latest first."""
        # As MLflow's search orders them.
        found = sorted((-run['start_time'], run['run_id'], folder)
                       for place, about in _described(self._root)
                       if about.get('name') == experiment
                       for folder, run in _described(place))
        for *_, folder in found:
            run = _RunFolder(folder)
            yield run.name, run


def _described(root: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Folders below that MLflow wrote and nobody deleted; what they are."""
    for place in root.iterdir():
        if (place / _ABOUT).is_file():
            about = read_yaml(place / _ABOUT) or {}  # It is being written.
            if about.get('lifecycle_stage') == 'active':
                yield place, about


class _RunFolder:

    def __init__(self, folder: Path):
        self._name = folder / 'tags' / _NAME
        self._metrics = folder / 'metrics'
        self._keys: Optional[Collection[str]] = None

    @property
    def name(self) -> str:
        return self._name.read_text() if self._name.exists() else ''

    @property
    def keys(self) -> Collection[str]:
        if self._keys is None:
            self._keys = {
                str(path.relative_to(self._metrics))
                for path in self._metrics.rglob('*')
                if path.is_file()
            }
        return self._keys

    def logged(self, key: str) -> np.ndarray:
        lines = (self._metrics / key).read_text().splitlines(keepends=True)
        # One without an end is being written.
        whole = [line for line in lines if line.endswith('\n')]
        return np.loadtxt(whole, ndmin=2) if whole else np.empty((0, 3))

    def rename(self, name: str) -> None:
        write_whole(self._name, name)
