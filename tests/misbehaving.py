"""A reward server that does, request by request, what a file tells it: `misbehaving.py CARD TOLD LOG [PORT]`.

The file holds behaviours, one a line; the last one stays. The log gets one line a request: its time and
what was done. Prints its port. Needs nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CARD, TOLD, LOG = (Path(name) for name in sys.argv[1:4])


def numbers(values: list[float | str]) -> bytes:
    return json.dumps({"value": {"dtype": "float32", "values": values}}).encode()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.reply(200, CARD.read_bytes())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what, *rest = TOLD.read_text().splitlines()
        if rest:
            TOLD.write_text("\n".join(rest))
        with LOG.open("a") as log:
            log.write(f"{time.time()} {what}\n")
        self.behave(what, len(body["items"]))

    def behave(self, what: str, n: int) -> None:
        match what.split():
            case ["good"]:
                self.reply(200, numbers([0.25] * n))
            case ["status", code, *after]:
                self.reply(int(code), b'{"detail": "as told"}', {"Retry-After": after[0]} if after else {})
            case ["garbage"]:
                self.reply(200, b"<html>\xff\x00 not scores</html>")
            case ["short"]:
                self.reply(200, numbers([0.25] * (n - 1)))
            case ["nan"]:
                self.reply(200, numbers([0.25] * (n - 1) + ["NaN"]))
            case ["cut"]:
                self.reply(200, b"{", {"Content-Length": "100"})
            case ["drop"]:
                self.close_connection = True
            case ["hang"]:
                time.sleep(1000)
            case ["drip"]:
                self.drip()
            case ["endless"]:
                self.endless()
            case ["die"]:
                os.kill(os.getpid(), signal.SIGKILL)

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """A byte now and then, so that no read ever times out."""
        self.send_response(200)
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(b" ")
            time.sleep(0.1)

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" " * 2**20)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[4]) if len(sys.argv) > 4 else 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
