"""``train.py`` and ``eval.py`` at the project's root."""

import os
import runpy
from pathlib import Path
from typing import Any

import llmfoundry.command_utils
import pytest

from foundry_upcycle.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize('name', ['train', 'eval'])
def test_usage_without_arguments(name: str):
    main = runpy.run_path(str(ROOT / f'{name}.py'))['main']
    with pytest.raises(SystemExit, match=f'usage: composer {name}.py YAML'):
        main([])


@pytest.mark.parametrize('given,used', [(None, '2'), ('1', '1')])
@pytest.mark.parametrize('name', ['train', 'eval'])
def test_hands_over_to_foundry_under_fsdp2(
    name: str,
    given: str | None,
    used: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    yaml = tmp_path / 'a.yaml'
    yaml.write_text('max_seq_len: 32')
    calls: list[Any] = []
    monkeypatch.setattr(
        llmfoundry.command_utils,
        f'{name}_from_yaml',
        lambda *args: calls.append((os.environ['FSDP_VERSION'], *args)),
    )
    # Set first, so that monkeypatch also takes back what main sets.
    monkeypatch.setenv('FSDP_VERSION', given or '')
    if given is None:
        monkeypatch.delenv('FSDP_VERSION')
    main = runpy.run_path(str(ROOT / f'{name}.py'))['main']
    main([str(yaml), 'max_duration=1ba'])
    assert calls == [(used, str(yaml), ['max_duration=1ba'])]


@pytest.mark.parametrize('name', ['train', 'eval'])
def test_tasks_are_checked_first(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    yaml = tmp_path / 'a.yaml'
    yaml.write_text('icl_tasks: absent.yaml')
    main = runpy.run_path(str(ROOT / f'{name}.py'))['main']
    monkeypatch.setenv('FSDP_VERSION', '2')
    with pytest.raises(ConfigError, match="icl_tasks='absent.yaml': there is"):
        main([str(yaml)])


@pytest.mark.parametrize('name', ['train', 'eval'])
def test_links_of_an_earlier_evaluation_are_removed(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    yaml = tmp_path / 'a.yaml'
    yaml.write_text('max_seq_len: 32')
    data = tmp_path / 'short_last-0.jsonl'
    data.write_text('{}')
    link = tmp_path / 'short_last-0.jsonl_tmp'
    link.symlink_to(data)
    own = tmp_path / 'own.jsonl_tmp'
    own.write_text('not a link')
    monkeypatch.setattr(
        llmfoundry.command_utils,
        f'{name}_from_yaml',
        lambda *_: None,
    )
    monkeypatch.setenv('FSDP_VERSION', '2')
    runpy.run_path(str(ROOT / f'{name}.py'))['main']([str(yaml)])
    assert not link.is_symlink()
    assert data.exists() and own.exists()
