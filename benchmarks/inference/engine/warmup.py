"""Requests before a measurement, so that what is slow once is not measured.

They make the engine compile, grow its buffers and start its threads. They are
sent before its counters are read, so that counters are of measured requests
alone.
"""

import http.client
import threading
from collections.abc import Sequence

from benchmarks.inference.engine.client import complete
from benchmarks.inference.errors import HarnessError

__all__ = ['warm_up']


def warm_up(
    url: str,
    prompts: Sequence[Sequence[int]],
    output_tokens: int,
    timeout_s: float,
    greedy: bool = False,
) -> None:
    """Sends prompts, all at once, and waits for the answers.

    Args:
        url: The server's.
        prompts: Token ids.
        output_tokens: Of each answer.
        timeout_s: For each.
        greedy: As of the load, see ``load.run_load``.

    Raises:
        HarnessError: An answer has other tokens, or there is none.
    """
    problems: list[str] = []

    def send(prompt: Sequence[int]) -> None:
        try:
            found = _complete(url, prompt, output_tokens, timeout_s, greedy)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as e:
            problems.append(f'no answer: {e!r}.')
        else:
            if found != output_tokens:
                problems.append(f'an answer of {found} tokens.')

    # Daemons: when the harness is interrupted, it does not wait for answers.
    threads = [
        threading.Thread(target=send, args=(prompt, ), daemon=True)
        for prompt in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise HarnessError(
            'warmup_requests', len(prompts),
            f'{len(problems)} failed, the first: {problems[0]}',
            'read the log of the server.'
        )


def _complete(
    url: str,
    prompt: Sequence[int],
    output_tokens: int,
    timeout_s: float,
    greedy: bool,
) -> int:
    """Asks for tokens as the load does; returns how many came."""
    body = {
        'prompt': list(prompt),
        'max_tokens': output_tokens,
        'temperature': 0.0 if greedy else 1.0,
        'ignore_eos': True,
    }
    return complete(url, body, timeout_s)['usage']['completion_tokens']
