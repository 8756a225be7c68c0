r"""Behaves like the command ``vllm``, without a model.

``serve`` answers on its port, counts nothing, and notes K as the plugin does.
``bench serve`` writes what a server of one request a 20th of a second gives.

The variable STUB_VLLM says what goes wrong: ``cached``: prompts are found in
the cache; ``other k``: the engine takes no notice of K; ``dies``: the server
does at its first load; ``rejects``: it does not start.
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

__all__ = ['main']

TROUBLE = os.environ.get('STUB_VLLM')
METRICS = """\
vllm:prefix_cache_hits_total{{engine="0"}} {hits}
vllm:num_preemptions_total{{engine="0"}} 3.0
vllm:cache_config_info{{kv_cache_size_tokens="4096"}} 1.0
"""


class Handler(http.server.BaseHTTPRequestHandler):
    n_metrics = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == '/metrics':
            hits = 16 * Handler.n_metrics if TROUBLE == 'cached' else 0
            Handler.n_metrics += 1
            self.wfile.write(METRICS.format(hits=hits).encode())
        if self.path == '/die':
            threading.Timer(0.1, os._exit, [7]).start()


def serve(flags: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--port', type=int)
    parser.add_argument('--hf-overrides', type=json.loads)
    args, _ = parser.parse_known_args(flags)
    if TROUBLE == 'rejects':
        print('vllm: error: unrecognized arguments: --fast', file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    if args.hf_overrides:
        k = args.hf_overrides['num_experts_per_tok']
        seen = {
            'top_k': [1 if TROUBLE == 'other k' else k] * 2,
            'experts': [8, 8],
            'tokens': [100, 100],
        }
        Path(os.environ['SERVING_ROUTING_LOG']).write_text(json.dumps(seen))
    address = ('127.0.0.1', args.port)
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()


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
    rows = args.dataset_path.read_text().splitlines()
    lengths = [len(json.loads(row)['prompt']) for row in rows]
    n = args.num_prompts
    starts = [5 + k / args.request_rate for k in range(n)]
    free, latencies = 0.0, []
    for start in starts:
        free = max(free, start) + 0.05
        latencies.append(free - start)
    result = {
        'completed': n,
        'errors': [''] * n,
        'input_lens': lengths[:n],
        'output_lens': [args.extra_body['max_tokens']] * n,
        'start_times': starts,
        'latencies': latencies,
        'ttfts': [latency - 0.01 for latency in latencies],
        'request_throughput': 3.0,
    }
    path = args.result_dir / args.result_filename
    path.write_text(json.dumps(result))


def main(*words: str) -> None:
    if words[0] == 'serve':
        serve(list(words[1:]))
    else:
        bench(list(words[2:]))


if __name__ == '__main__':
    main(*sys.argv[1:])
