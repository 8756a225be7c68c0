"""Reads the metrics of an MLflow run."""

from pathlib import Path
from typing import Mapping

from foundry_upcycle.errors import ConfigError

__all__ = ['MLFLOW', 'mlflow_metrics']

# What a source that is a run starts with.
MLFLOW = 'mlflow:'
_SQLITE = 'sqlite:///'


def mlflow_metrics(source: str) -> Mapping[str, float]:
    """The latest value of each metric.

    Args:
        source: ``mlflow:<tracking URI>#<run name or id>``.

    Raises:
        ConfigError: There is no such store or run, it can't be read, or there
            are several runs.
    """
    # It takes seconds to import.
    from mlflow import MlflowClient
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    uri, _, name = source.removeprefix(MLFLOW).rpartition('#')
    # A client makes a store that is not there.
    if uri.startswith(_SQLITE):
        exists = Path(uri.removeprefix(_SQLITE).partition('?')[0]).is_file()
    else:
        exists = (
            not is_local_uri(uri) or Path(local_file_uri_to_path(uri)).is_dir()
        )
    if not (uri and name and exists):
        raise ConfigError(
            'results',
            source,
            'there is no such MLflow store.',
            'write mlflow:<tracking URI>#<run name or id>, such as '
            'mlflow:runs/mlruns#upcycle.',
        )
    try:
        client = MlflowClient(uri)
        experiments = [
            str(found.experiment_id) for found in client.search_experiments()
        ]
        # Composer's tag stays what it is; its run name gets a rank appended.
        runs = {
            run.info.run_id: run
            for key in
            ('attributes.run_id', 'attributes.run_name', 'tags.run_name')
            for run in client.search_runs(experiments, f'{key} = "{name}"')
        }
    except Exception as error:
        # Of MLflow, or of whatever library the kind of store takes.
        raise ConfigError(
            'results',
            source,
            f"it can't be read: {type(error).__name__}: {error}.",
            "check the tracking URI and the run, or give a JSON of the run's "
            'metrics.',
        ) from error
    if len(runs) != 1:
        raise ConfigError(
            'results',
            source,
            f'{len(runs)} runs have this name or id: '
            f"{', '.join(sorted(runs)) or 'none'}.",
            'name one run, by its id where the name is not unique.',
        )
    return next(iter(runs.values())).data.metrics
