"""Reads the metrics of an MLflow run."""

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence
from urllib.parse import unquote, urlsplit

from foundry_upcycle.errors import ConfigError

__all__ = ['MLFLOW', 'mlflow_histories', 'store_folder']

# What a source that is a run starts with.
MLFLOW = 'mlflow:'
_SQLITE = 'sqlite:///'


def store_folder(uri: str) -> Optional[Path]:
    """The folder that a tracking URI is of; None: a database or a server.

    As MLflow has it, which takes seconds to import.
    """
    parts = urlsplit(uri)
    if parts.scheme == 'file' and parts.netloc in ('', 'localhost'):
        return Path(unquote(parts.path))
    # That one word is MLflow's name of a server.
    is_path = not parts.scheme and uri != 'databricks'
    return Path(uri) if is_path else None


def mlflow_histories(
    key: str,
    source: str,
    names: re.Pattern[str],
) -> dict[str, dict[int, float]]:
    """All values of some metrics, by name and step, steps ascending.

    A run that resumed went back to an earlier step: what it had logged from
    there on before is left out. Composer's logger itself leaves out values that
    equal the one before, for up to ``log_duplicated_metric_every_n_steps``.

    Args:
        key: What the source is called in errors.
        source: ``mlflow:<tracking URI>#<run name or id>``.
        names: Of the metrics, from start to end.

    Raises:
        ConfigError: There is no such store or run, it can't be read, or there
            are several runs.
    """
    client, run = _open(key, source)
    with _errors(key, source):
        return {
            name: _last_pass(client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
            if names.fullmatch(name)
        }


def _last_pass(logged: Sequence[Any]) -> dict[int, float]:
    values: dict[int, float] = {}
    for metric in sorted(logged, key=lambda each: (each.timestamp, each.step)):
        while values and next(reversed(values)) >= metric.step:
            values.popitem()
        values[metric.step] = metric.value
    return values


def _open(key: str, source: str) -> tuple[Any, Any]:
    """A client of the store, and the run."""
    # It takes seconds to import.
    from mlflow import MlflowClient

    uri, _, name = source.removeprefix(MLFLOW).rpartition('#')
    # A client makes a store that is not there.
    if uri.startswith(_SQLITE):
        exists = Path(uri.removeprefix(_SQLITE).partition('?')[0]).is_file()
    else:
        folder = store_folder(uri)
        exists = folder is None or folder.is_dir()
    if not (uri and name and exists):
        raise ConfigError(
            key,
            source,
            'there is no such MLflow store.',
            'write mlflow:<tracking URI>#<run name or id>, such as '
            'mlflow:runs/mlruns#upcycle.',
        )
    with _errors(key, source):
        client = MlflowClient(uri)
        experiments = [
            str(found.experiment_id) for found in client.search_experiments()
        ]
        # Composer's tag stays what it is; its run name gets a rank appended.
        runs = {
            run.info.run_id: run
            for field in
            ('attributes.run_id', 'attributes.run_name', 'tags.run_name')
            for run in client.search_runs(experiments, f'{field} = "{name}"')
        }
    if len(runs) != 1:
        raise ConfigError(
            key,
            source,
            f'{len(runs)} runs have this name or id: '
            f"{', '.join(sorted(runs)) or 'none'}.",
            'name one run, by its id where the name is not unique.',
        )
    return client, next(iter(runs.values()))


@contextmanager
def _errors(key: str, source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Of MLflow, or of whatever library the kind of store takes.
        raise ConfigError(
            key,
            source,
            f"it can't be read: {type(error).__name__}: {error}.",
            "check the tracking URI and the run, or give a JSON of the run's "
            'metrics.',
        ) from error
