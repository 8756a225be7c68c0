"""What a server counts, and what its log says of the engine.

Names are those of vLLM 0.32. A metric or line that another version lacks reads
as None, not as 0.
"""

import re
from dataclasses import dataclass
from typing import Optional

from benchmarks.inference.errors import HarnessError

__all__ = [
    'Counters',
    'EngineFacts',
    'check_counters',
    'count_between',
    'facts_of_log',
    'is_idle',
    'kv_cache_tokens',
    'parse_metrics',
]

_SAMPLE = re.compile(r'^([\w:]+)(?:\{(.*)\})? (\S+)$')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
# Of histograms, only the sum and the count are kept.
_LEFT_OUT = ('_bucket', '_created')

_GIB = 2**30


@dataclass(frozen=True)
class Counters:
    """What happened between two readings of ``/metrics``.

    Attributes:
        prefix_cache_hits: Tokens of prompts that were not computed but found in
            the cache: 0, or the measurement is of something else.
        preemptions: Requests that lost their place for lack of KV cache, and
            were computed again.
        prompt_tokens: Of the requests that were answered.
        output_tokens: Of their answers.
        spec_drafted: Tokens that speculation proposed; None: no speculation.
        spec_accepted: Those of them that the model took.
    """
    prefix_cache_hits: Optional[int]
    preemptions: Optional[int]
    prompt_tokens: Optional[int]
    output_tokens: Optional[int]
    spec_drafted: Optional[int]
    spec_accepted: Optional[int]


@dataclass(frozen=True)
class EngineFacts:
    """What the engine said of itself when it started.

    Attributes:
        version: vLLM's.
        kv_cache_tokens: How many tokens' keys and values fit.
        weight_bytes: Memory of the weights on one device; a CPU's engine does
            not say.
        moe_backend: How experts are computed; None: no experts.
        moe_kernel: vLLM's name of the class that computes them.
        tuned_config: Whether tuned settings of the expert kernel were found;
            None: that kernel has none, or there are no experts. The engine
            looks for them at its first batch, so read the log at the end.
        cpu_cores: Cores that the engine's ranks compute on; None: on GPUs.
    """
    version: Optional[str]
    kv_cache_tokens: Optional[int]
    weight_bytes: Optional[int]
    moe_backend: Optional[str]
    moe_kernel: Optional[str]
    tuned_config: Optional[bool]
    cpu_cores: Optional[tuple[int, ...]]


def parse_metrics(text: str) -> dict[str, float]:
    """Values by name, summed over labels such as engine and reason."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and not match[1].endswith(_LEFT_OUT):
            values[match[1]] = values.get(match[1], 0.0) + float(match[3])
    return values


def kv_cache_tokens(text: str) -> Optional[int]:
    """How many tokens' keys and values fit, from ``/metrics``."""
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and match[1] == 'vllm:cache_config_info':
            size = dict(_LABEL.findall(match[2])).get('kv_cache_size_tokens')
            return int(size) if size and size.isdigit() else None
    return None


def count_between(before: str, after: str) -> Counters:
    """What happened between two texts of ``/metrics`` of one server."""
    first, second = parse_metrics(before), parse_metrics(after)

    def grown(name: str) -> Optional[int]:
        if f'vllm:{name}_total' not in second:
            return None
        name = f'vllm:{name}_total'
        return round(second[name] - first.get(name, 0.0))

    return Counters(
        prefix_cache_hits=grown('prefix_cache_hits'),
        preemptions=grown('num_preemptions'),
        prompt_tokens=grown('prompt_tokens'),
        output_tokens=grown('generation_tokens'),
        spec_drafted=grown('spec_decode_num_draft_tokens'),
        spec_accepted=grown('spec_decode_num_accepted_tokens'),
    )


def is_idle(text: str) -> bool:
    """Whether ``/metrics`` tells of no request that is in work or waits.

    The engine counts a step's tokens with this: what was answered is then in
    the counters. An answer may be out a moment before its step is counted.
    """
    values = parse_metrics(text)
    names = ('vllm:num_requests_running', 'vllm:num_requests_waiting')
    return not any(values.get(name) for name in names)


def check_counters(
    counters: Counters,
    n: int,
    input_tokens: int,
    output_tokens: int,
) -> None:
    """Checks that the engine computed the measured requests and nothing else.

    Args:
        counters: From before the load to after it. What is not counted (None)
            is not checked.
        n: Requests.
        input_tokens: Of each prompt.
        output_tokens: Of each answer.

    Raises:
        HarnessError: Prompts were cached, or other tokens computed.
    """
    if counters.prefix_cache_hits:
        raise HarnessError(
            'prefix_cache_hits', counters.prefix_cache_hits,
            'tokens of prompts were found in the cache, not computed.',
            'start the server with --no-enable-prefix-caching.'
        )
    for key, found, expected in (
        ('prompt_tokens', counters.prompt_tokens, n * input_tokens),
        ('output_tokens', counters.output_tokens, n * output_tokens),
    ):
        if found not in (None, expected):
            raise HarnessError(
                key, found,
                f'the engine counts other tokens than the {expected} of the '
                f'{n} requests.',
                'keep other clients from the server, and read its log.'
            )


def facts_of_log(log: str) -> EngineFacts:
    """Reads a server's log."""
    tokens = _find(r'KV cache size: ([\d,]+) tokens', log)
    weights = _find(r'Model loading took ([\d.]+) GiB', log)
    ranks = re.findall(r'core ids=\[([\d, ]+)\]', log)
    cores = {int(core) for rank in ranks for core in rank.split(',')}
    return EngineFacts(
        version=_find(r'Initializing a V1 LLM engine \(v([^)]+)\)', log),
        kv_cache_tokens=int(tokens.replace(',', '')) if tokens else None,
        weight_bytes=round(float(weights) * _GIB) if weights else None,
        moe_backend=_find(r'Using (\S.*?) MoE backend out of', log),
        moe_kernel=_find(r'Using (\w+) MoE backend\s*$', log),
        tuned_config=_tuned_config(log),
        cpu_cores=tuple(sorted(cores)) or None,
    )


def _find(pattern: str, log: str) -> Optional[str]:
    match = re.search(pattern, log, re.MULTILINE)
    return match[1] if match else None


def _tuned_config(log: str) -> Optional[bool]:
    if 'Using default MoE config' in log:
        return False
    found = re.search(r'Using configuration from \S+ for MoE layer', log)
    return True if found else None
