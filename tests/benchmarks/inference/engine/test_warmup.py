"""Requests before a measurement."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.inference.engine.server import free_port
from benchmarks.inference.engine.warmup import warm_up
from benchmarks.inference.errors import HarnessError


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers when all three requests are there."""
    barrier = threading.Barrier(3)
    asked: list[dict[str, Any]] = []
    answer = b'{"usage": {"completion_tokens": 4}}'

    def do_POST(self) -> None:
        size = int(self.headers['Content-Length'])
        Handler.asked.append(json.loads(self.rfile.read(size)))
        Handler.barrier.wait(timeout=20)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(Handler.answer)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, 'asked', [])
    port = free_port()
    server = http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{port}'
    server.shutdown()
    server.server_close()


def test_all_prompts_at_once(url: str):
    warm_up(url, [[5], [6], [7]], 4, 30)
    assert sorted(body['prompt'] for body in Handler.asked) == [[5], [6], [7]]
    for body in Handler.asked:
        assert body['max_tokens'] == 4
        assert body['ignore_eos'] is True


@pytest.mark.parametrize(
    ('answer', 'problem'),
    [
        (b'{"usage": {"completion_tokens": 3}}', 'an answer of 3 tokens'),
        (b'{}', 'no answer: KeyError'),
        (b'{', 'no answer: JSONDecodeError'),
    ],
)
def test_other_answers(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    problem: str,
):
    monkeypatch.setattr(Handler, 'answer', answer)
    problem = f'warmup_requests=3: 3 failed, the first: {problem}'
    with pytest.raises(HarnessError, match=problem):
        warm_up(url, [[5], [6], [7]], 4, 30)


def test_no_server():
    with pytest.raises(HarnessError, match='1 failed, the first: no answer'):
        warm_up(f'http://127.0.0.1:{free_port()}', [[5]], 4, 30)
