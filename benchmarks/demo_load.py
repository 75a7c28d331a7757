"""Attacks a demo server on this machine, and measures how long an ordinary visitor waits meanwhile.

600 half-sent heads and 10 slow uploads stay open; 20 requests for answers are abandoned. A visitor asks for answers
before, during and after; at the end the server is stopped with uploads still open. Needs the extra `demo`.

    python benchmarks/demo_load.py [--checkpoint nano]
"""

import argparse
import http.client
import socket
import statistics
import threading
import time

import numpy as np

from fi_jax.cli.configs import load_config
from fi_jax.demo.app import make_app
from fi_jax.demo.guard import HEAD_SECONDS, make_server
from fi_jax.demo.service import Service, encoded_face
from fi_jax.faces.framing import FramedFace
from fi_jax.inference.answerer import load_answerer
from fi_jax.labels.registry import vocabulary
from fi_jax.weights.bundle import TrainedModel, load_model


def make_model(name: str) -> TrainedModel:
    """The named model, or `tiny` with random weights."""
    if name != "tiny":
        return load_model(name)
    config = load_config("tiny")
    size = len(vocabulary(config.data.vocabulary))
    prompts = np.random.default_rng(0).normal(size=(size, config.model.knowledge.prompt_size)).astype(np.float32)
    return TrainedModel(config, {}, prompts, np.eye(size, dtype=np.float32), {})


def send(port: int, head: str, body: bytes = b"") -> socket.socket | None:
    """Opens a connection and sends what is given; None where it is refused."""
    try:
        link = socket.create_connection(("127.0.0.1", port), timeout=5)
        link.sendall(head.replace("\n", "\r\n").encode() + body)
    except OSError:
        return None
    return link


def visit(port: int, crop: bytes, times: int = 5) -> list[float]:
    """Seconds that a visitor waits for all answers about a face, a few times."""
    waited = []
    for _ in range(times):
        start = time.perf_counter()
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        link.request("POST", "/api/answers", crop)
        assert link.getresponse().status == 200
        link.close()
        waited.append(time.perf_counter() - start)
    return waited


def main() -> None:
    """Runs the attack and prints the waiting times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", default="tiny")
    service = Service(load_answerer(make_model(parser.parse_args().checkpoint)))
    service.warm_up()
    side = service.size
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    crop = encoded_face(FramedFace(noise, np.zeros((side, side), np.uint8), "box"))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port, server = listener.getsockname()[1], make_server(make_app(service))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.05)

    def report(what: str, waited: list[float]) -> None:
        print(f"{what}: median {statistics.median(waited):.2f} s, longest {max(waited):.2f} s", flush=True)

    report("alone", visit(port, crop))
    slow = [send(port, "POST /api/faces HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 9999\n\n", b"x") for _ in range(10)]
    report("10 slow uploads", visit(port, crop))
    head = f"POST /api/answers HTTP/1.1\nHost: 127.0.0.1\nContent-Length: {len(crop)}\n\n"
    for link in [send(port, head, crop) for _ in range(20)]:
        if link is not None:
            link.close()
    report("after 20 abandoned requests", visit(port, crop))
    half = [send(port, "POST /api/faces HTTP/1.1\nHost: 127") for _ in range(600)]
    start = time.perf_counter()
    served = False
    while not served:
        try:
            served = bool(visit(port, crop, 1))
        except OSError:
            time.sleep(0.2)
    print(
        f"600 half-sent heads of one address: a visitor of that same address is served after {time.perf_counter() - start:.1f} s "
        f"(they are closed after {HEAD_SECONDS:.0f} s)"
    )
    slow += [send(port, "POST /api/faces HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 9999\n\n", b"x") for _ in range(3)]
    start = time.perf_counter()
    server.should_exit = True
    thread.join()
    print(f"stopped with open uploads after {time.perf_counter() - start:.1f} s")
    for link in (*slow, *half):
        if link is not None:
            link.close()


if __name__ == "__main__":
    main()
