"""Servers end with their block, and say why they did not start."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.inference.engine import server as server_module
from benchmarks.inference.engine.processes import cause_in_log
from benchmarks.inference.engine.server import (
    Server,
    engine_flags,
    find_vllm,
    free_port,
    serve_command,
    server_environment,
)
from benchmarks.inference.errors import HarnessError

HERE = Path(__file__).parents[1]
PROJECT = HERE.parents[2]
STUB = HERE / 'stub_server.py'


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, '_GRACE_SECONDS', 1)


def build(folder: Path, mode: str, **changes: Any) -> Server:
    port = changes.pop('port', None) or free_port()
    return Server(
        [sys.executable, str(STUB), mode,
         str(port)],
        port,
        folder / 'server.log',
        dict(os.environ),
        **changes,
    )


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            stat = (folder / 'stat').read_text()
        except OSError:
            continue
        state, _, pgrp = stat.rsplit(')', 1)[1].split()[:3]
        if int(pgrp) == group and state not in 'ZX':
            found.append(int(folder.name))
    return found


def assert_ended(group: int) -> None:
    deadline = time.monotonic() + 10
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not members(group)


def test_answers_then_ends(tmp_path: Path):
    with build(tmp_path, 'answers') as server:
        group = server._process.pid
        assert len(members(group)) == 2
        assert 0 < server.start_seconds < 60
        assert 'vllm:num_preemptions_total' in server.metrics()
        server.check_alive()
    assert_ended(group)


def test_sigterm_is_given_back(tmp_path: Path):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with build(tmp_path, 'answers'):
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_deaf_server_is_killed(tmp_path: Path):
    with build(tmp_path, 'deaf') as server:
        group = server._process.pid
    assert_ended(group)


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_ends_with_an_error_in_its_block(
    tmp_path: Path,
    error: type[BaseException],
):
    with pytest.raises(error, match='of the block'):
        with build(tmp_path, 'answers') as server:
            group = server._process.pid
            raise error('of the block')
    assert_ended(group)


def test_says_that_it_died(tmp_path: Path):
    with build(tmp_path, 'dies later') as server:
        group = server._process.pid
        server._process.wait()
        with pytest.raises(HarnessError, match='died with exit status 7'):
            server.metrics()
    # Its child, which it left, is ended.
    assert_ended(group)


@pytest.mark.parametrize(
    ('mode', 'problem'),
    [
        ('rejects', r'rejects its flags: .*unrecognized arguments: --no-such'),
        ('dies', r'died with exit status 1: .*Cannot find any model weights'),
        ('silent', r'no answer in 1 s\.'),
        # Someone took it in the meantime.
        ('no port', r'port=\d+: in use by another process'),
    ],
)
def test_says_why_it_did_not_start(tmp_path: Path, mode: str, problem: str):
    server = build(tmp_path, mode, timeout_s=1 if mode == 'silent' else 60)
    with pytest.raises(HarnessError, match=problem) as error:
        server.__enter__()
    if mode != 'no port':
        assert f'The end of {server.log}' in str(error.value)
    assert_ended(server._process.pid)


def test_port_in_use(tmp_path: Path):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(HarnessError, match=f'port={port}: in use'):
            build(tmp_path, 'answers', port=port).__enter__()
    assert not (tmp_path / 'server.log').exists()


# Interpreted by itself: what a signal does to the harness.
HARNESS = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(PROJECT)!r})
from benchmarks.inference.engine.server import Server, free_port
port = free_port()
command = [sys.executable, {str(STUB)!r}, 'answers', str(port)]
with Server(command, port, Path(sys.argv[1]), {{}}) as server:
    print(server._process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    'sent',
    [signal.SIGTERM, signal.SIGINT, signal.SIGKILL],
)
def test_ends_with_the_harness(tmp_path: Path, sent: signal.Signals):
    harness = subprocess.Popen(
        [sys.executable, '-c', HARNESS,
         str(tmp_path / 'server.log')],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with harness:
        assert harness.stdout is not None
        group = int(harness.stdout.readline())
        assert members(group)
        harness.send_signal(sent)
        harness.wait(timeout=20)
    assert harness.returncode in (-sent, 128 + sent)
    assert_ended(group)


def test_finds_vllm(tmp_path: Path):
    with pytest.raises(HarnessError, match='vllm=.*no such command'):
        find_vllm(tmp_path / 'vllm')
    (tmp_path / 'vllm').touch()
    assert find_vllm(tmp_path / 'vllm') == tmp_path / 'vllm'


def test_engine_flags():
    engine = {
        'dtype': 'bfloat16',
        'max_model_len': 1024,
        'enforce_eager': True,
        'kv_cache_gib': 0.5,
        'max_num_seqs': None,
    }
    assert ' '.join(engine_flags(engine)) == (
        '--dtype bfloat16 --max-model-len 1024 --enforce-eager '
        '--kv-cache-memory-bytes 536870912'
    )
    assert engine_flags({'enforce_eager': False}) == []
    with pytest.raises(HarnessError, match='engine.seed=1: unknown'):
        engine_flags({'seed': 1})


def test_serve_command():
    command = serve_command(
        Path('vllm'), Path('model'), 80, {}, 'dummy', 2, ['--last']
    )
    assert '--no-enable-prefix-caching' in command
    assert command[-5:] == [
        '--load-format', 'dummy', '--hf-overrides',
        '{"num_experts_per_tok": 2}', '--last'
    ]
    dense = serve_command(Path('vllm'), Path('model'), 80, {}, 'real', None)
    assert '--hf-overrides' not in dense and 'dummy' not in dense


def test_environment_of_the_shell_does_not_count(
    monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv('VLLM_CPU_KVCACHE_SPACE', '7')
    monkeypatch.setenv('VLLM_CACHE_ROOT', 'kept')
    environment = server_environment({'ADDED': 'yes'})
    assert 'VLLM_CPU_KVCACHE_SPACE' not in environment
    assert environment['VLLM_CACHE_ROOT'] == 'kept'
    assert environment['ADDED'] == 'yes'
    assert environment['HF_HUB_OFFLINE'] == '1'


@pytest.mark.parametrize(
    ('log', 'cause'),
    [
        (
            'rejected.log',
            'vllm: error: unrecognized arguments: --no-such-flag 3',
        ),
        (
            'no_weights.log',
            'RuntimeError: Cannot find any model weights with `moe`',
        ),
        ('no_kernel.log', 'ValueError: Unsupported FP8 MoE backend: NONE'),
        # It names an error that the server got over.
        ('server.log', None),
        ('there is none.log', None),
    ],
)
def test_cause_in_log(log: str, cause: str):
    assert cause_in_log(HERE / 'recorded' / log) == cause
