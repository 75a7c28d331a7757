"""Helpers of the demo's tests: a picture as a file, a server on a free port."""

import http.client
import io
import json
import socket
import threading
import time

import numpy as np
from PIL import Image


def file_of(image: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


class Server:
    """A running server and a way to call it."""

    def __init__(self, service):
        from fi_jax.demo.app import make_app
        from fi_jax.demo.guard import make_server

        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.server = make_server(make_app(service))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 30
        while not self.server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)

    def call(self, path: str, body: bytes | None = None, headers: dict | None = None):
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            link.request("GET" if body is None else "POST", path, body, headers or {})
            answer = link.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            link.close()

    def json(self, path: str, body: bytes):
        status, text, _ = self.call(path, body)
        return status, json.loads(text)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(120)
