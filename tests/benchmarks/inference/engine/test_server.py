"""Servers end with their block, and say why they did not start."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.inference.engine import processes
from benchmarks.inference.engine import server as server_module
from benchmarks.inference.engine.processes import (
    cause_in_log,
    end_group,
    end_leftover,
    record_group,
    start_group,
)
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
    started = time.monotonic()
    with build(tmp_path, 'answers') as server:
        group = server._process.pid
        assert len(members(group)) == 2
        assert 0 < server.start_seconds <= time.monotonic() - started
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
    server = build(tmp_path, 'answers')
    with pytest.raises(error, match='of the block'):
        with server:
            assert len(members(server._process.pid)) == 2
            raise error('of the block')
    assert_ended(server._process.pid)


def test_says_that_it_died(tmp_path: Path):
    with build(tmp_path, 'dies later') as server:
        group = server._process.pid
        server._process.wait()
        with pytest.raises(HarnessError, match='died with exit status 7'):
            server.metrics()
    # Its child, which it left, is ended.
    assert_ended(group)


def test_says_that_it_does_not_count(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(server_module, '_METRICS_SECONDS', 0.1)
    with build(tmp_path, 'stuck') as server:
        problem = f"server='{server.url}/metrics': no answer in 0.1 s"
        with pytest.raises(HarnessError, match=problem) as error:
            server.metrics()
    assert f'The end of {server.log}' in str(error.value)


@pytest.mark.parametrize(
    ('mode', 'problem'),
    [
        ('rejects', r'rejects its flags: .*unrecognized arguments: --no-such'),
        ('dies', r'died with exit status 1: .*Cannot find any model weights'),
        # Someone took it in the meantime.
        ('no port', r'port=\d+: in use by another process'),
    ],
)
def test_says_why_it_did_not_start(tmp_path: Path, mode: str, problem: str):
    server = build(tmp_path, mode)
    with pytest.raises(HarnessError, match=problem) as error:
        server.__enter__()
    if mode != 'no port':
        assert f'The end of {server.log}' in str(error.value)
    assert_ended(server._process.pid)


def test_says_why_it_does_not_answer(tmp_path: Path):
    server = build(tmp_path, 'never started', timeout_s=0.5)
    server.command = ['sh', '-c', 'echo "OSError: no host"; exec sleep 600']
    with pytest.raises(HarnessError, match='no answer in 0.5 s: OSError: no'):
        server.__enter__()
    assert_ended(server._process.pid)


def test_port_in_use(tmp_path: Path):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(HarnessError, match=f'port={port}: in use'):
            build(tmp_path, 'answers', port=port).__enter__()
    assert not (tmp_path / 'server.log').exists()


# Ignores SIGTERM, as does its child, and says when it does.
DEAF = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('deaf', flush=True)
subprocess.run(['sleep', '600'])
"""


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[subprocess.Popen]:
    log = tmp_path / 'deaf.log'
    process = start_group([sys.executable, '-c', DEAF], log, {})
    while 'deaf' not in log.read_text() or len(members(process.pid)) < 2:
        time.sleep(0.02)
    yield process
    end_group(process, 0)


def test_second_interrupt_leaves_no_orphans(
    deaf: subprocess.Popen,
    monkeypatch: pytest.MonkeyPatch,
):
    wait = deaf.wait

    def interrupted(timeout: float) -> int:
        monkeypatch.setattr(deaf, 'wait', wait)
        raise KeyboardInterrupt('the second')

    monkeypatch.setattr(deaf, 'wait', interrupted)
    with pytest.raises(KeyboardInterrupt, match='the second'):
        end_group(deaf, 60)
    assert_ended(deaf.pid)


def test_says_that_a_process_can_not_be_ended(
    tmp_path: Path,
    deaf: subprocess.Popen,
    monkeypatch: pytest.MonkeyPatch,
):
    pid_file = tmp_path / 'server.pid'
    record_group(pid_file, deaf.pid)
    problem = f'server={deaf.pid}: the process is there even when killed'
    with monkeypatch.context() as patched:
        patched.setattr(os, 'killpg', lambda *_: None)
        patched.setattr(processes, '_KILL_SECONDS', 0.1)
        with pytest.raises(HarnessError, match=problem):
            end_group(deaf, 0)
        with pytest.raises(HarnessError, match=problem):
            end_leftover(pid_file, 0)
    # The next may try again.
    assert pid_file.exists()


def test_next_server_ends_what_is_left(
    tmp_path: Path,
    deaf: subprocess.Popen,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(server_module, '_GRACE_SECONDS', 0.1)
    pid_file = tmp_path / 'study/server.pid'
    record_group(pid_file, deaf.pid)
    with build(tmp_path, 'answers', pid_file=pid_file) as server:
        assert_ended(deaf.pid)
        assert int(pid_file.read_text().split()[0]) == server._process.pid
    assert not pid_file.exists()


def test_what_is_left_may_end_by_itself(tmp_path: Path):
    process = start_group(['sleep', '600'], tmp_path / 'log', {})
    pid_file = tmp_path / 'server.pid'
    record_group(pid_file, process.pid)
    started = time.monotonic()
    end_leftover(pid_file, 60)
    assert time.monotonic() - started < 30
    assert process.wait() == -signal.SIGTERM
    assert not pid_file.exists()


@pytest.mark.parametrize('content', ['{pid} 1', '{pid}', '', 'no number'])
def test_leaves_processes_of_others(
    tmp_path: Path,
    deaf: subprocess.Popen,
    content: str,
):
    pid_file = tmp_path / 'server.pid'
    pid_file.write_text(content.format(pid=deaf.pid))
    end_leftover(pid_file, 0)
    assert len(members(deaf.pid)) == 2
    assert not pid_file.exists()


def test_server_that_does_not_start_leaves_no_pid_file(tmp_path: Path):
    pid_file = tmp_path / 'server.pid'
    with pytest.raises(HarnessError, match='rejects its flags'):
        build(tmp_path, 'rejects', pid_file=pid_file).__enter__()
    assert not pid_file.exists()


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


# As vLLM 0.32.0 writes it, cut short.
REJECTED_SETTING = """\
Traceback (most recent call last):
  File "vllm", line 10, in <module>
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (99999) is greater than the derived
 [type=value_error, input_value=ArgsKwargs((), {'model': ...}), input_type=Args]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
""".replace('\n [type', ' [type')


def test_cause_is_of_a_setting(tmp_path: Path):
    log = tmp_path / 'server.log'
    log.write_text(REJECTED_SETTING)
    cause = cause_in_log(log)
    assert cause == (
        'Value error, User-specified max_model_len (99999) is greater than the '
        'derived'
    )
