"""What a server makes of texts: losses, likeliest tokens, greedy answers."""

import http.client
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.inference.engine.client import complete
from benchmarks.inference.engine.texts import Document, pieces
from benchmarks.inference.errors import HarnessError

__all__ = ['Scored', 'greedy_answers', 'score']

# Requests under way at a time: the engine puts them into batches.
_AT_ONCE = 8
_Item = TypeVar('_Item')
_Answer = TypeVar('_Answer')


@dataclass(frozen=True)
class Scored:
    """Of a document, from its second token on.

    Attributes:
        nll: Sum of the negative log-likelihoods, in nats.
        likeliest: The token that was likeliest at each place, after the
            document's own tokens before it.
    """
    nll: float
    likeliest: tuple[int, ...]


def score(
    url: str,
    documents: Sequence[Document],
    max_model_len: int,
    timeout_s: float,
) -> list[Scored]:
    """Scores documents, each token but a document's first once.

    A document that is longer than the engine takes is cut, see
    ``texts.pieces``.

    Args:
        url: The server's.
        documents: What it reads.
        max_model_len: Tokens that the engine takes, with the one of an answer.
        timeout_s: For each request.

    Raises:
        HarnessError: There is no answer, or a broken one.
    """
    cut = [pieces(document.ids, max_model_len - 1) for document in documents]
    flat = [piece for of in cut for piece in of]
    answers = iter(
        _ask_all(flat, lambda piece: _score(url, *piece, timeout_s), url),
    )
    return [_joined([next(answers) for _ in of]) for of in cut]


def _joined(parts: Sequence[Scored]) -> Scored:
    likeliest = (token for part in parts for token in part.likeliest)
    return Scored(sum(part.nll for part in parts), tuple(likeliest))


def _score(
    url: str,
    piece: Sequence[int],
    n_scored: int,
    timeout_s: float,
) -> Scored:
    body = {
        'prompt': list(piece),
        'max_tokens': 1,
        'temperature': 0.0,
        # Beside each token's own the likeliest one's.
        'prompt_logprobs': 1,
    }
    answer = complete(url, body, timeout_s)
    entries = answer['choices'][0]['prompt_logprobs']
    if len(entries) != len(piece):
        raise ValueError(f'{len(entries)} scores of {len(piece)} tokens')
    nll, likeliest = 0.0, []
    # Nothing precedes the first token: its entry is null.
    for token, entry in zip(piece[-n_scored:], entries[-n_scored:]):
        own = entry[str(token)]
        nll -= own['logprob']
        likeliest.append(token if own['rank'] == 1 else _first(entry))
    return Scored(nll, tuple(likeliest))


def _first(entry: dict[str, Any]) -> int:
    return next(int(token) for token, e in entry.items() if e['rank'] == 1)


def greedy_answers(
    url: str,
    prompts: Sequence[Sequence[int]],
    output_tokens: int,
    timeout_s: float,
) -> list[tuple[int, ...]]:
    """The likeliest token after each prompt, then after that, and so on.

    Args:
        url: The server's.
        prompts: Token ids.
        output_tokens: Of each answer, also past an end of sequence.
        timeout_s: For each request.

    Raises:
        HarnessError: There is no answer, or a broken one.
    """

    def ask(prompt: Sequence[int]) -> tuple[int, ...]:
        body = {
            'prompt': list(prompt),
            'max_tokens': output_tokens,
            'temperature': 0.0,
            'ignore_eos': True,
            'return_token_ids': True,
        }
        ids = complete(url, body, timeout_s)['choices'][0]['token_ids']
        if len(ids) != output_tokens:
            raise ValueError(f'{len(ids)} tokens instead of {output_tokens}')
        return tuple(ids)

    return _ask_all(prompts, ask, url)


def _ask_all(
    items: Sequence[_Item],
    ask: Callable[[_Item], _Answer],
    url: str,
) -> list[_Answer]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            return list(pool.map(ask, items))
        except (OSError, http.client.HTTPException, ValueError, KeyError,
                TypeError, StopIteration) as error:
            pool.shutdown(cancel_futures=True)
            raise HarnessError(
                'quality',
                url,
                f'no answer, or a broken one: {error!r}.',
                'read the log of the server.',
            ) from error
