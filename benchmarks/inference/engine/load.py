"""Load on a server, by ``vllm bench serve``: requests and their times.

The load is open: requests arrive at random times of a Poisson process, whatever
the server does, and at the same times for the same seed, rate and number. That
the tool kept to these times is checked.
"""

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inference.engine.processes import (
    cause_in_log,
    end_group,
    end_of_log,
    exit_on_sigterm,
    start_group,
)
from benchmarks.inference.engine.server import MODEL_NAME
from benchmarks.inference.errors import HarnessError, SlowClientError

__all__ = ['BenchResult', 'bench_command', 'read_result', 'run_load']

_GRACE_SECONDS = 5
# Share by which arrivals may be stretched.
_STRETCH = 0.05


@dataclass(frozen=True)
class BenchResult:
    """What was measured of each request, in the order in which they were sent.

    Attributes:
        start_s: When it was sent, in s since the first was.
        end_s: When its last token came, on the same clock.
        input_tokens: Of its prompt, as the server counted.
        output_tokens: Of its answer, as the server counted.
        ttft_s: From sending to the first token.
        tool: The tool's own figures, by its names.
    """
    start_s: tuple[float, ...]
    end_s: tuple[float, ...]
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    ttft_s: tuple[float, ...]
    tool: dict[str, float]


def bench_command(
    tool: Sequence[str],
    url: str,
    model: Path,
    prompts: Path,
    result: Path,
    n: int,
    rate: float,
    output_tokens: int,
    seed: int,
    greedy: bool = False,
) -> list[str]:
    """The command that sends the first ``n`` prompts of a file.

    Args: see ``run_load``.
    """
    body = json.dumps({'max_tokens': output_tokens, 'detokenize': False})
    return [
        *tool, '--backend', 'openai', '--base-url', url,
        '--endpoint', '/v1/completions',
        '--model', str(model), '--served-model-name', MODEL_NAME,
        '--skip-tokenizer-init',
        '--dataset-name', 'custom', '--dataset-path', str(prompts),
        '--disable-shuffle',
        # Without a tokenizer the tool asks for one token, unless told here.
        '--extra-body', body,
        '--temperature', '0.0' if greedy else '1.0',
        # A sequence that ends early is less work.
        '--ignore-eos',
        '--num-prompts', str(n), '--request-rate', f'{rate:g}',
        # The harness warms up itself, see warmup.py.
        '--seed', str(seed), '--num-warmups', '0',
        # The server answers already, or it would not be measured.
        '--ready-check-timeout-sec', '0', '--disable-tqdm',
        '--percentile-metrics', 'e2el',
        '--save-result', '--save-detailed',
        '--result-dir', str(result.parent), '--result-filename', result.name,
    ]  # yapf: disable


def run_load(
    tool: Sequence[str],
    url: str,
    model: Path,
    prompts: Path,
    folder: Path,
    n: int,
    rate: float,
    input_tokens: int,
    output_tokens: int,
    seed: int,
    environment: Mapping[str, str],
    timeout_s: float,
    greedy: bool = False,
) -> BenchResult:
    """Sends requests, waits for all answers and checks them.

    Args:
        tool: The command: ``[vllm, 'bench', 'serve']``.
        url: The server's.
        model: The folder that it serves.
        prompts: See ``prompts.write_prompts``.
        folder: Gets ``bench.json`` and ``bench.log``.
        n: Requests that are measured.
        rate: Requests/s; ``math.inf``: all at once.
        input_tokens: Of each prompt.
        output_tokens: Of each answer.
        seed: Of the times of arrival; of 32 bits.
        environment: See ``server.server_environment``.
        timeout_s: For all of it.
        greedy: Whether tokens are the likeliest, or drawn at temperature 1.

    Raises:
        HarnessError: A request failed, a prompt or an answer does not have the
            tokens that it should, requests were sent too slowly, or the result
            can't be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / 'bench.json', folder / 'bench.log'
    result.unlink(missing_ok=True)
    command = bench_command(
        tool, url, model, prompts, result, n, rate, output_tokens, seed, greedy
    )
    _run(command, log, environment, timeout_s)
    if not result.is_file():
        raise _error(n, log, 'the tool wrote no result.', 'read its log.')
    return read_result(result, log, n, rate, input_tokens, output_tokens)


def _run(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    timeout_s: float,
) -> None:
    with exit_on_sigterm():
        process = start_group(command, log, environment)
        try:
            status = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise _error(
                timeout_s, log, f'the tool did not end in {timeout_s:g} s.',
                'send fewer requests, or allow more time.'
            ) from error
        finally:
            end_group(process, _GRACE_SECONDS)
    if status:
        cause = cause_in_log(log) or 'its log names no error'
        raise _error(
            status, log, f'the tool ended with exit status {status}: {cause}.',
            'read its log.'
        )


def read_result(
    result: Path,
    log: Path,
    n: int,
    rate: float,
    input_tokens: int,
    output_tokens: int,
) -> BenchResult:
    """Reads and checks a result of the tool; see ``run_load``."""
    try:
        found = json.loads(result.read_text())
        _check_requests(found, log, n)
        _check_lengths('input_tokens', found['input_lens'], input_tokens, log)
        _check_lengths(
            'output_tokens', found['output_lens'], output_tokens, log
        )
        _check_arrivals(found, log, n, rate)
        return _bench_result(found)
    except HarnessError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _error(
            str(result), log,
            f'the result cannot be read as that of the tool: {error!r}.',
            'use the version of vLLM that install.sh installs.'
        ) from error


def _bench_result(found: Mapping[str, Any]) -> BenchResult:
    first = min(found['start_times'])
    start_s = tuple(start - first for start in found['start_times'])
    return BenchResult(
        start_s,
        tuple(s + latency for s, latency in zip(start_s, found['latencies'])),
        tuple(found['input_lens']),
        tuple(found['output_lens']),
        tuple(found['ttfts']),
        _figures(found),
    )


def _check_requests(found: Mapping[str, Any], log: Path, n: int) -> None:
    failed = n - found['completed']
    if failed:
        errors = [error for error in found['errors'] if error]
        last_line = errors[0].strip().splitlines()[-1] if errors else 'unknown'
        raise _error(
            n, log, f'{failed} of {n} requests failed, the first: {last_line}.',
            'read the log of the server.'
        )


def _check_lengths(
    key: str,
    lengths: Sequence[int],
    expected: int,
    log: Path,
) -> None:
    wrong = [length for length in lengths if length != expected]
    if wrong:
        raise HarnessError(
            f'workload.{key}', expected,
            f'{len(wrong)} of {len(lengths)} requests had others, the first '
            f'{wrong[0]}.',
            f'check max_model_len and the prompts; the tool\'s log is {log}.'
        )


def _check_arrivals(
    found: Mapping[str, Any],
    log: Path,
    n: int,
    rate: float,
) -> None:
    """Checks that the requests were sent as fast as they should.

    The tool draws its arrivals and scales them, so that the last is n / rate
    after it begins, exactly and for each seed. When it began is known from its
    ``duration``, which ends with the last answer. So few requests are checked
    as well as many; a delay that the tool made up for is not seen.
    """
    if math.isinf(rate):
        return
    ends = [s + t for s, t in zip(found['start_times'], found['latencies'])]
    began = max(ends) - found['duration']
    took, planned = max(found['start_times']) - began, n / rate
    if took > (1 + _STRETCH) * planned:
        raise SlowClientError(
            'rate', rate,
            f'the client sent its {n} requests in {took:.2f} s, not in '
            f'{planned:.2f} s: it is too slow.',
            'end what else is busy here, measure lower or fewer rates, or give '
            f'the client more cores; its log is {log}.'
        )


def _figures(found: Mapping[str, Any]) -> dict[str, float]:
    """The single figures among the tool's results."""
    return {
        key: value
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        and math.isfinite(value)
    }


def _error(value: Any, log: Path, problem: str, fix: str) -> HarnessError:
    return HarnessError('requests', value, problem, f'{fix}\n{end_of_log(log)}')
