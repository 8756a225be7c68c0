"""What Foundry would refuse is refused before anything is trained."""

from pathlib import Path

import pytest
import yaml
from small_study import YAMLS, small_grid, write_study

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.study.grid import Grid
from foundry_upcycle.study.plan_files import write_yamls
from foundry_upcycle.study.preflight import check_runs


def with_arm(folder: Path, overrides: dict[str, object]) -> Grid:
    models = yaml.safe_load(write_study(folder).read_text())['models']
    models['m']['arms']['cpt']['overrides'] = overrides
    return small_grid(folder, models=models, evaluation=None)


def test_what_foundry_takes_passes(tmp_path: Path):
    grid = with_arm(tmp_path, {})
    write_yamls(grid)
    check_runs(grid)


def test_a_misspelt_setting_of_the_last_arm(tmp_path: Path):
    grid = with_arm(tmp_path, {'eval_intervall': '1ba'})
    write_yamls(grid)
    match = 'study=.*m_short_cpt_0.4_s17.yaml.: LLM Foundry refuses.*intervall'
    with pytest.raises(ConfigError, match=match):
        check_runs(grid)


def test_a_misspelt_setting_of_the_evaluation(tmp_path: Path):
    content = yaml.safe_load((YAMLS / 'eval_quickstart.yaml').read_text())
    content['precison'] = 'fp32'
    path = tmp_path / 'eval.yaml'
    path.write_text(yaml.safe_dump(content))
    grid = small_grid(tmp_path, evaluation=str(path))
    write_yamls(grid)
    match = 'study=.*m_short_eval.yaml.: LLM Foundry refuses.*precison'
    with pytest.raises(ConfigError, match=match):
        check_runs(grid)


def test_tasks_that_are_not_there(tmp_path: Path):
    grid = small_grid(tmp_path)
    write_yamls(grid)
    with pytest.raises(ConfigError, match='icl_tasks=.*there is no such file'):
        check_runs(grid)
