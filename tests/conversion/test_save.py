"""A file and its manifest: of each other, whatever ends a conversion."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tqdm import tqdm

from foundry_upcycle.config import FileFormat, UpcyclingConfig
from foundry_upcycle.conversion.convert import convert
from foundry_upcycle.conversion.inspect import describe
from foundry_upcycle.conversion.manifest import is_output
from foundry_upcycle.conversion.verify import verify
from foundry_upcycle.errors import CheckpointError


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')


def make(
    source: str,
    out: Path,
    experts: int,
    file_format: FileFormat = 'pt',
) -> None:
    convert(
        UpcyclingConfig(source, seed=experts),
        str(out),
        file_format,
        moe_num_experts=experts,
        overwrite=True,
    )


def claims(out: Path) -> tuple[str, str]:
    """What ``inspect`` says that it is, and what it was made by."""
    facts = dict(describe(str(out)))
    return facts['model'].split(',')[0][-9:], facts['made by']


def make_killed(source: str, out: Path, experts: int, rename: int) -> int:
    """``make`` in a process that ends itself before its nth rename."""
    child = os.fork()
    if child == 0:
        left = rename

        def hook(event: str, _: Any) -> None:
            nonlocal left
            if event == 'os.rename':
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            torch.set_num_threads(1)  # The parent's are not here.
            tqdm.set_lock(threading.RLock())
            sys.addaudithook(hook)
            make(source, out, experts)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize('is_new', [False, True])
def test_killed_at_any_rename(source: str, tmp_path: Path, is_new: bool):
    """The file is an old or a new one, and nothing false is said of it."""
    out = tmp_path / 'moe.pt'
    for rename in range(1, 10):
        if is_new:
            out.unlink(missing_ok=True)
            out.with_name('moe.pt.manifest.json').unlink(missing_ok=True)
        else:
            make(source, out, 4)
        code = make_killed(source, out, 2, rename)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if out.exists():
            model, made_by = claims(out)
            assert model == '4 experts'
            assert 'moe_num_experts=4' in made_by or 'not known' in made_by
            result = verify(source, str(out))
            assert result.passed and result.routers == ('of foun' in made_by)
    assert code == 0 and rename > 2
    assert claims(out)[0] == '2 experts'
    assert 'moe_num_experts=2' in claims(out)[1]
    assert sorted(os.listdir(tmp_path)) == [
        'dense.pt',
        'moe.pt',
        'moe.pt.manifest.json',
    ]


def test_what_a_killed_one_replaced_comes_back(source: str, tmp_path: Path):
    out = tmp_path / 'moe.pt'
    make(source, out, 4)
    manifest = out.with_name('moe.pt.manifest.json').read_bytes()
    # Renames: the manifest is written whole, the old one goes, the new one
    # comes; the file's would be the fourth.
    assert make_killed(source, out, 2, rename=4) == -signal.SIGKILL
    model, made_by = claims(out)
    assert model == '4 experts'
    assert 'moe.pt.manifest.json is not of this moe.pt' in made_by
    with pytest.raises(CheckpointError, match='it exists'):
        convert(UpcyclingConfig(source), str(out), 'pt')
    assert out.with_name('moe.pt.manifest.json').read_bytes() != manifest
    with pytest.raises(CheckpointError, match='weight'):
        damaged = tiny.build_dense()
        with torch.no_grad():
            damaged.state_dict()['model.transformer.wte.weight'][0] = 1e6
        other = tiny.save_dense(damaged, tmp_path / 'damaged.pt')
        convert(
            UpcyclingConfig(other),
            str(out),
            'pt',
            dtype=torch.float16,
            overwrite=True,
        )
    assert out.with_name('moe.pt.manifest.json').read_bytes() == manifest
    assert 'moe_num_experts=4' in claims(out)[1]


@pytest.mark.parametrize('file_format', ['pt', 'dcp', 'safetensors'])
def test_a_manifest_is_not_of_what_came_later(
    source: str,
    tmp_path: Path,
    file_format: FileFormat,
):
    """As of a run that saves over what it started from."""
    out, other = tmp_path / 'out', tmp_path / 'other'
    make(source, out, 4, file_format)
    make(source, other, 2, file_format)
    for folder in (out, other):
        if file_format != 'pt':
            assert is_output(folder)
    if file_format == 'pt':
        os.replace(other, out)
    else:
        for file in other.iterdir():
            if file.name != 'manifest.json':
                file.replace(out / file.name)
        assert not is_output(out)
    model, made_by = claims(out)
    assert model == '2 experts' and 'is not of this' in made_by
    result = verify(source, str(out))
    assert result.passed and not result.routers
    assert 'is not of this' in result.lines()[0]


def test_a_pair_may_be_renamed(source: str, tmp_path: Path):
    make(source, tmp_path / 'moe.pt', 4)
    for name in ('moe.pt', 'moe.pt.manifest.json'):
        (tmp_path / name).rename(tmp_path / name.replace('moe', 'best'))
    assert 'moe_num_experts=4' in claims(tmp_path / 'best.pt')[1]
