"""What the engine built and routed, in a file that answers questions.

The file says ``{"top_k": [of each layer], "experts": [of each layer],
"tokens": [of each layer], "answers": q}``: what was built, whatever was asked
for, and how many tokens were routed by tables when question q was asked. To ask
one, its text is put beside the file, where ``question_of`` says.

Nothing is written while nobody asks, so that a measurement isn't disturbed, and
passes that are replayed without Python are counted like all others.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ['Record', 'question_of']

# Seconds between two looks for a question.
_PERIOD = 0.1


def question_of(path: Path) -> Path:
    """Where questions to a record are put."""
    return path.with_name(f'{path.name}.question')


class Record:
    """Writes the file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.top_k: list[int] = []
        self.experts: list[int] = []

    def add_layer(self, top_k: int, experts: int) -> None:
        self.top_k.append(top_k)
        self.experts.append(experts)
        self._write([], '')

    def answer(self, count_tokens: Callable[[], list[int]]) -> None:
        """Answers each question from now on, in a thread.

        Args:
            count_tokens: How many tokens each layer has routed by now.
        """
        threading.Thread(
            target=self._answer,
            args=(count_tokens, ),
            daemon=True,
        ).start()

    def _answer(self, count_tokens: Callable[[], list[int]]) -> None:
        question, answered = question_of(self.path), ''
        while True:
            asked = question.read_text() if question.is_file() else ''
            if asked != answered:
                self._write(count_tokens(), asked)
                answered = asked
            time.sleep(_PERIOD)

    def _write(self, tokens: list[int], answers: str) -> None:
        content = {
            'top_k': self.top_k,
            'experts': self.experts,
            'tokens': tokens,
            'answers': answers,
        }
        # Ranks of tensor parallelism write the same.
        partial = self.path.with_name(f'{self.path.name}.{os.getpid()}')
        partial.write_text(json.dumps(content))
        partial.replace(self.path)
