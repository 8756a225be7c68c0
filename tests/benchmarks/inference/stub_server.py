r"""Behaves like a server of vLLM, in seconds.

    python stub_server.py MODE PORT

It has a child, as vLLM has its engine, and ends it when it ends. MODE:

- ``answers``: as it should.
- ``deaf``: answers, and does not react to SIGTERM.
- ``stuck``: answers, but does not say what it counts.
- ``rejects``, ``dies``, ``no port``: end before they answer, with what vLLM
  then writes.
- ``dies later``: ends as soon as it has answered.
"""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

__all__ = ['main']

RECORDED = Path(__file__).parent / 'recorded'
METRICS = (RECORDED / 'metrics_after.txt').read_bytes()


class Handler(http.server.BaseHTTPRequestHandler):

    def do_GET(self) -> None:
        if sys.argv[1] == 'stuck' and self.path == '/metrics':
            time.sleep(600)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(METRICS if self.path == '/metrics' else b'')
        if sys.argv[1] == 'dies later':
            # Once the answer is out.
            threading.Timer(0.2, os._exit, [7]).start()


def fail(log: str, status: int) -> None:
    print((RECORDED / log).read_text(), flush=True)
    os._exit(status)


def main(mode: str, port: str) -> None:
    child = subprocess.Popen([sys.executable, '-c', 'input()'],
                             stdin=subprocess.PIPE)

    def end(number: int, _: object) -> None:
        child.kill()
        os._exit(128 + number)

    deaf = mode == 'deaf'
    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else end)
    if mode == 'rejects':
        fail('rejected.log', 2)
    if mode == 'dies':
        fail('no_weights.log', 1)
    if mode == 'no port':
        fail('port.log', 1)
    address = ('127.0.0.1', int(port))
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()


if __name__ == '__main__':
    main(*sys.argv[1:])
