"""A web server on localhost that misbehaves as told."""

from __future__ import annotations

import re
import threading
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from hashlib import md5
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer


@dataclass
class Site:
    """What is served, what goes wrong with the next answers, and what was asked.

    Attributes:
        files: path -> content, served with ETag, Range and If-Range as they should be.
        faults: one dict for each answer to come, `{}` for a good one: `cut` (bytes after which the connection
            ends), `ranges=False` (Range is ignored), `length` (announced instead of the true one), `status`,
            `headers` (more of them; None takes one away), `body`, `run` (a function called first).
        asked: the headers of each request.
        sent: the bytes that went out in each answer.
    """

    url: str = ''
    files: dict[str, bytes] = field(default_factory=dict)
    faults: deque = field(default_factory=deque)
    asked: list[Message] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


def _respond(site: Site, handler: BaseHTTPRequestHandler) -> None:
    site.asked.append(handler.headers)
    fault = site.faults.popleft() if site.faults else {}
    fault.get('run', lambda: None)()
    body = fault.get('body', site.files.get(handler.path))
    status = fault.get('status', 404 if body is None else 200)
    body = body or b''
    tag = f'"{md5(body).hexdigest()}"'
    headers = {'ETag': tag, 'Content-Type': 'application/octet-stream'}
    wanted = re.fullmatch(r'bytes=(\d+)-', handler.headers.get('Range', ''))
    if wanted and fault.get('ranges', True) and handler.headers.get('If-Range', tag) == tag:
        start = int(wanted[1])
        headers['Content-Range'] = f'bytes {start}-{len(body) - 1}/{len(body)}'
        status = 206 if start < len(body) else 416
        body = body[start:]
    headers['Content-Length'] = fault.get('length', len(body))
    handler.send_response(status)
    for name, value in (headers | fault.get('headers', {})).items():
        if value is not None:
            handler.send_header(name, str(value))
    handler.end_headers()
    out = body[: fault.get('cut', len(body))]
    site.sent.append(len(out))  # before the client can have it all
    handler.wfile.write(out)


@contextmanager
def serve():
    """A Site, at `site.url`, while the context lasts."""
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            with suppress(ConnectionError):  # the client may have read enough
                _respond(site, self)

        def log_message(self, *_):
            pass

    server = ThreadingTCPServer(('127.0.0.1', 0), Handler)  # HTTPServer would ask DNS for its name
    site.url = f'http://127.0.0.1:{server.server_address[1]}'
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
