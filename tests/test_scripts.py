"""``train.py`` and ``eval.py`` at the project's root."""

import os
import runpy
from pathlib import Path
from typing import Any

import llmfoundry.command_utils
import pytest

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
    monkeypatch: pytest.MonkeyPatch,
):
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
    main(['a.yaml', 'max_duration=1ba'])
    assert calls == [(used, 'a.yaml', ['max_duration=1ba'])]
