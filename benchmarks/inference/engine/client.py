"""Asks a server by vLLM's completions API, with token ids."""

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from benchmarks.inference.engine.server import MODEL_NAME

__all__ = ['complete']


def complete(
    url: str,
    body: Mapping[str, Any],
    timeout_s: float,
) -> dict[str, Any]:
    """The answer to a request.

    Args:
        url: The server's.
        body: What it is asked, beside the model.
        timeout_s: For all of it.

    Raises:
        OSError, http.client.HTTPException, ValueError: There is none.
    """
    # Servers are without a tokenizer.
    content = {'model': MODEL_NAME, 'detokenize': False, **body}
    request = urllib.request.Request(
        f'{url}/v1/completions',
        json.dumps(content).encode(),
        {'Content-Type': 'application/json'},
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.load(answer)
