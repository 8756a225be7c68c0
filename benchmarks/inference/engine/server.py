"""A server of vLLM that ends with the block that it serves."""

import http.client
import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

from benchmarks.inference.engine.processes import (
    cause_in_log,
    end_group,
    end_leftover,
    end_of_log,
    exit_on_sigterm,
    record_group,
    start_group,
)
from benchmarks.inference.errors import HarnessError

__all__ = [
    'HOST',
    'MODEL_NAME',
    'Server',
    'engine_flags',
    'find_vllm',
    'free_port',
    'serve_command',
    'server_environment',
]

HOST = '127.0.0.1'
MODEL_NAME = 'model'

# vLLM ends its engine within seconds; 0.32 itself waits 0 s for requests.
_GRACE_SECONDS = 30
_POLL_SECONDS = 0.25
_METRICS_SECONDS = 60
# Variables of vLLM's that say where, not how.
_KEPT_VARIABLES = ('VLLM_CACHE_ROOT', 'VLLM_CONFIG_ROOT')

# What an engine section, as a variant changes it, may hold, as flags of
# `vllm serve`.
_FLAGS = {
    'dtype': '--dtype',
    'max_model_len': '--max-model-len',
    'tensor_parallel_size': '--tensor-parallel-size',
    'max_num_seqs': '--max-num-seqs',
    'max_num_batched_tokens': '--max-num-batched-tokens',
    'kv_cache_dtype': '--kv-cache-dtype',
}


def find_vllm(vllm: Optional[Path] = None) -> Path:
    """The command `vllm`: the given one, or that beside this Python."""
    vllm = vllm or Path(sys.executable).with_name('vllm')
    if not vllm.is_file():
        raise HarnessError(
            'vllm', str(vllm), 'no such command.',
            'run `make install-vllm` and use .venv-vllm/bin/python.'
        )
    return vllm


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def engine_flags(engine: Mapping[str, Any]) -> list[str]:
    """Flags of ``vllm serve`` for a study's engine section.

    Args:
        engine: Keys of ``_FLAGS``, and ``enforce_eager`` (bool; False:
            compiled) and ``kv_cache_gib`` (GiB for keys and values, of each
            device). None: vLLM's default.
    """
    flags = []
    for key, value in engine.items():
        if value is None:
            continue
        if key == 'enforce_eager':
            flags += ['--enforce-eager'] if value else []
        elif key == 'kv_cache_gib':
            # Not VLLM_CPU_KVCACHE_SPACE, which takes whole GiB, on a CPU.
            flags += ['--kv-cache-memory-bytes', str(int(value * 2**30))]
        elif key in _FLAGS:
            flags += [_FLAGS[key], str(value)]
        else:
            raise HarnessError(
                f'engine.{key}', value, 'unknown.',
                f'known are enforce_eager, kv_cache_gib, {", ".join(_FLAGS)}.'
            )
    return flags


def serve_command(
    vllm: Path,
    model: Path,
    port: int,
    engine: Mapping[str, Any],
    load_format: str,
    top_k: Optional[int],
    flags: Sequence[str] = (),
) -> list[str]:
    """The command that serves a folder, to clients that send token ids.

    Prompts are never cached: equal prompts would cost nothing the second time.

    Args:
        vllm: See ``find_vllm``.
        model: The model's folder.
        port: To listen on.
        engine: See ``engine_flags``.
        load_format: ``dummy`` or ``real``.
        top_k: Experts of a token, whatever the folder says; None: dense.
        flags: Of a variant.
    """
    command = [
        str(vllm), 'serve',
        str(model), '--host', HOST, '--port',
        str(port), '--served-model-name', MODEL_NAME, '--skip-tokenizer-init',
        '--no-enable-prefix-caching', *engine_flags(engine)
    ]
    if load_format == 'dummy':
        command += ['--load-format', 'dummy']
    if top_k is not None:
        overrides = json.dumps({'num_experts_per_tok': top_k})
        command += ['--hf-overrides', overrides]
    return [*command, *flags]


def server_environment(additions: Mapping[str, str]) -> dict[str, str]:
    """This environment without what would change vLLM, and with additions.

    A study is what its file says: variables ``VLLM_*`` of the shell don't
    count.
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith('VLLM_') or key in _KEPT_VARIABLES
    }
    environment['HF_HUB_OFFLINE'] = '1'
    environment['VLLM_NO_USAGE_STATS'] = '1'
    return {**environment, **additions}


class Server:
    """A server that answers in the block of a ``with``, and ends with it.

    It is ended when the block ends, also by an error, Ctrl-C or SIGTERM, and
    when it doesn't start. Should the harness be killed, Linux asks it to end,
    and the next server with the same ``pid_file`` ends it first.

    Args:
        command: See ``serve_command``.
        port: Of the command.
        log: What the server writes.
        environment: See ``server_environment``.
        timeout_s: How long it may take to answer.
        pid_file: Names the server while it is there, for servers of which only
            one may be there at a time. See ``processes.end_leftover``.

    Attributes:
        url: Without a slash at the end.
        start_seconds: From the start to the first answer.

    Raises:
        HarnessError: On entering, if the port is taken, the engine rejects its
            flags or dies, or nothing answers in time.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        log: Path,
        environment: Mapping[str, str],
        timeout_s: float = 900,
        pid_file: Optional[Path] = None,
    ):
        self.command = list(command)
        self.port = port
        self.log = log
        self.environment = environment
        self.timeout_s = timeout_s
        self.pid_file = pid_file
        self.url = f'http://{HOST}:{port}'
        self.start_seconds = 0.0

    def __enter__(self) -> 'Server':
        if self.pid_file:
            end_leftover(self.pid_file, _GRACE_SECONDS)
        _check_port(self.port)
        with ExitStack() as stack:
            stack.enter_context(exit_on_sigterm())
            started = time.monotonic()
            self._process = start_group(
                self.command, self.log, self.environment
            )
            stack.callback(self._end)
            if self.pid_file:
                record_group(self.pid_file, self._process.pid)
            while not self._answers():
                self.check_alive()
                if time.monotonic() - started > self.timeout_s:
                    raise self._error(
                        f'no answer in {self.timeout_s:g} s: {self._cause()}.',
                        'read the log; where it was still loading, allow more '
                        'time.',
                    )
                time.sleep(_POLL_SECONDS)
            # Another server on this port would have answered as well.
            self.check_alive()
            self.start_seconds = time.monotonic() - started
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._stack.close()

    def check_alive(self) -> None:
        """Raises HarnessError, with the log's end, if the server is dead."""
        status = self._process.poll()
        if status is None:
            return
        cause = self._cause()
        if 'error: ' in cause and status == 2:
            raise self._error(
                f'the engine rejects its flags: {cause}.',
                'correct the study\'s engine or the variant.',
            )
        if 'Address already in use' in cause:
            raise _port_error(self.port)
        raise self._error(
            f'the server died with exit status {status}: {cause}.',
            'read the log.',
        )

    def metrics(self) -> str:
        """What the server counts, as text in Prometheus' format."""
        self.check_alive()
        url = f'{self.url}/metrics'
        try:
            with urllib.request.urlopen(url, timeout=_METRICS_SECONDS) as page:
                return page.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise HarnessError(
                'server', url,
                f'no answer in {_METRICS_SECONDS} s, or a broken one: '
                f'{error!r}.', f'read the log.\n{end_of_log(self.log)}'
            ) from error

    def _end(self) -> None:
        end_group(self._process, _GRACE_SECONDS)
        if self.pid_file:
            self.pid_file.unlink(missing_ok=True)

    def _cause(self) -> str:
        return cause_in_log(self.log) or 'its log names no error'

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f'{self.url}/health', timeout=5):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def _error(self, problem: str, fix: str) -> HarnessError:
        return HarnessError(
            'server',
            str(self.log),
            problem,
            f"{fix}\nIt was started by: {' '.join(self.command)}\n"
            f'{end_of_log(self.log)}',
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        # As servers do: a port that was just closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise _port_error(port) from error


def _port_error(port: int) -> HarnessError:
    return HarnessError(
        'port', port, 'in use by another process.',
        'end that process, or choose another port.'
    )
