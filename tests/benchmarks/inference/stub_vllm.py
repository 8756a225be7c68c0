r"""Behaves like the command ``vllm``, without a model.

``serve`` answers on its port, counts tokens, and records K and routed tokens as
the plugin does. ``bench serve`` sends prompts, and writes what a server of one
request a 20th of a second gives. Its models count: a mixture finds the next
number the likeliest token, and a dense one the number after that.

The variable STUB_VLLM says what goes wrong:

- ``rejects``: it does not start; ``dies``: it does at its first load.
- ``cold``: it answers no request; ``busy``: nor is it ever at rest.
- ``cached``: prompts are found in the cache; ``other tokens``: it counts one
  too many.
- ``other k``, ``other layers``, ``other experts``: the engine builds them.
- ``past the tables``: it routes without the plugin.
- ``no scores``: it leaves out one of a prompt's log-probabilities.
- ``slow client``: the tool takes a tenth longer to send.
"""

import argparse
import http.server
import json
import os
import signal
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ['main']

TROUBLE = os.environ.get('STUB_VLLM')
METRICS = """\
vllm:prefix_cache_hits_total{{engine="0"}} {hits}
vllm:num_preemptions_total{{engine="0"}} 3.0
vllm:prompt_tokens_total{{engine="0"}} {prompt}
vllm:generation_tokens_total{{engine="0"}} {output}
vllm:num_requests_running{{engine="0"}} {running}
vllm:cache_config_info{{kv_cache_size_tokens="4096"}} 1.0
"""
LOG = """\
(Worker pid=1) INFO 01-01 00:00:00 [omp.py:185] local_rank=0, core ids=[0, 2]
"""


class Handler(http.server.BaseHTTPRequestHandler):
    lock = threading.Lock()
    prompt = output = routed = 0
    step = 2

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == '/metrics':
            text = METRICS.format(
                hits=Handler.prompt if TROUBLE == 'cached' else 0,
                prompt=Handler.prompt,
                output=Handler.output,
                running=int(TROUBLE == 'busy'),
            )
            self.wfile.write(text.encode())
        if self.path == '/die':
            threading.Timer(0.1, os._exit, [7]).start()

    def do_POST(self) -> None:
        size = int(self.headers['Content-Length'])
        asked = json.loads(self.rfile.read(size))
        self.send_response(500 if TROUBLE == 'cold' else 200)
        self.end_headers()
        prompt, output = len(asked['prompt']), asked['max_tokens']
        with Handler.lock:
            Handler.prompt += prompt + (TROUBLE == 'other tokens')
            Handler.output += output
            Handler.routed += prompt + output - 1
        last = asked['prompt'][-1]
        choice = {
            'token_ids': [last + self.step * (k + 1) for k in range(output)],
            'prompt_logprobs': scores(asked['prompt'], self.step),
        }
        answer = {'usage': {'completion_tokens': output}, 'choices': [choice]}
        self.wfile.write(json.dumps(answer).encode())


def scores(prompt: list[int], step: int) -> list[Any]:
    found: list[Any] = [None]
    for before, token in zip(prompt, prompt[1:]):
        likeliest = {str(before + step): {'logprob': -0.5, 'rank': 1}}
        found.append({str(token): {'logprob': -2.0, 'rank': 9}, **likeliest})
    return found[TROUBLE == 'no scores':]


def serve(flags: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--port', type=int)
    parser.add_argument('--hf-overrides', type=json.loads)
    args, _ = parser.parse_known_args(flags)
    if TROUBLE == 'rejects':
        print('vllm: error: unrecognized arguments: --fast', file=sys.stderr)
        sys.exit(2)
    print(LOG, flush=True)
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    if args.hf_overrides:
        Handler.step = 1
        record(args.hf_overrides['num_experts_per_tok'])
    address = ('127.0.0.1', args.port)
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()


def record(top_k: int) -> None:
    # On the path of servers alone.
    from simulated_routing.record import Record

    written = Record(Path(os.environ['SERVING_ROUTING_LOG']))
    layers = 3 if TROUBLE == 'other layers' else 2
    for _ in range(layers):
        written.add_layer(
            1 if TROUBLE == 'other k' else top_k,
            4 if TROUBLE == 'other experts' else 8,
        )
    is_past = TROUBLE == 'past the tables'
    written.answer(lambda: [0 if is_past else Handler.routed] * layers)


def bench(flags: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--base-url')
    parser.add_argument('--dataset-path', type=Path)
    parser.add_argument('--extra-body', type=json.loads)
    parser.add_argument('--num-prompts', type=int)
    parser.add_argument('--request-rate', type=float)
    parser.add_argument('--result-dir', type=Path)
    parser.add_argument('--result-filename')
    args, _ = parser.parse_known_args(flags)
    if TROUBLE == 'dies':
        urllib.request.urlopen(f'{args.base_url}/die').close()
        raise ConnectionError('no answer')
    lengths, n = [], args.num_prompts
    for row in args.dataset_path.read_text().splitlines()[:n]:
        body = {**json.loads(row), **args.extra_body}
        send(args.base_url, body)
        lengths.append(len(body['prompt']))
    rate = args.request_rate / (1.1 if TROUBLE == 'slow client' else 1)
    # As the tool: the last request is sent n / rate after it begins.
    began = 5.0
    starts = [began + (k + 1) / rate for k in range(n)]
    free, latencies = 0.0, []
    for start in starts:
        free = max(free, start) + 0.05
        latencies.append(free - start)
    result = {
        'completed': n,
        'errors': [''] * n,
        'duration': free - began,
        'input_lens': lengths,
        'output_lens': [args.extra_body['max_tokens']] * n,
        'start_times': starts,
        'latencies': latencies,
        'ttfts': [latency - 0.01 for latency in latencies],
        'request_throughput': 3.0,
    }
    path = args.result_dir / args.result_filename
    path.write_text(json.dumps(result))


def send(url: str, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    urllib.request.urlopen(f'{url}/v1/completions', content).close()


def main(*words: str) -> None:
    if words[0] == 'serve':
        serve(list(words[1:]))
    else:
        bench(list(words[2:]))


if __name__ == '__main__':
    main(*sys.argv[1:])
