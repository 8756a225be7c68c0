"""Asks a server for the quality of its answers."""

from pathlib import Path
from typing import Any

from benchmarks.inference.engine.lm_eval import ask_tasks
from benchmarks.inference.engine.score import greedy_answers, score
from benchmarks.inference.engine.texts import beginnings, read_texts
from benchmarks.inference.study.quality import Quality

__all__ = ['ask_quality']

# For a request, and for all of lm-eval: before it counts as stuck.
_REQUEST_SECONDS, _TASKS_SECONDS = 600, 4 * 3600


def ask_quality(
    quality: Quality,
    url: str,
    model: Path,
    vocab_size: int,
    max_model_len: int,
    folder: Path,
) -> dict[str, Any]:
    """What quality.json keeps: raw, so that a report compares what it will.

    Args:
        quality: What is asked.
        url: The server's.
        model: The folder that it serves.
        vocab_size: Of the model.
        max_model_len: Of the engine.
        folder: For logs.

    Raises:
        HarnessError: The server did not answer all of it.
    """
    documents = read_texts(quality.texts, model, vocab_size)
    greedy = quality.greedy
    prompts = beginnings(documents, greedy.prompts, greedy.input_tokens)
    scored = score(url, documents, max_model_len, _REQUEST_SECONDS)
    answers = greedy_answers(
        url,
        prompts,
        greedy.output_tokens,
        _REQUEST_SECONDS,
    )
    tasks = None if quality.tasks is None else ask_tasks(
        quality.tasks,
        url,
        model,
        max_model_len,
        folder,
        _TASKS_SECONDS,
    )
    n_bytes = [document.n_bytes for document in documents]
    return {
        'documents': {
            'tokens': [len(of.likeliest) for of in scored],
            'nll': [of.nll for of in scored],
            'bytes': None if None in n_bytes else n_bytes,
        },
        'likeliest': [list(of.likeliest) for of in scored],
        'greedy': [list(answer) for answer in answers],
        'tasks': tasks,
    }
