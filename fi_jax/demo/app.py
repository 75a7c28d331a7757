"""The demo's HTTP side (Starlette): one page and its calls, bounded in memory, with one model thread."""

import asyncio
import contextlib
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fi_jax import __version__
from fi_jax.demo.guard import Guard
from fi_jax.demo.service import Service, Switches, example
from fi_jax.errors import UserError

LARGEST_UPLOAD = 128 * 2**20
LARGEST_CROP = 2 * 2**20
# Bodies held at a time, of all requests together.
MOST_HELD = 4 * LARGEST_UPLOAD
# Whole pictures are decoded this many at a time: 50 megapixels take 150 MB.
PICTURES_AT_ONCE = 2
# Requests that may wait for the model; more are told to come back.
MOST_WAITING = 200
# For a whole upload, and for its next piece.
UPLOAD_SECONDS = 120
PIECE_SECONDS = 10
# How often a request that waits looks whether its visitor is still there.
LOOK_SECONDS = 0.5


class _Busy(Exception):
    """Too many requests wait already."""


class _TooLarge(Exception):
    """A body over its limit."""


def page(is_instruction_tuned: bool) -> str:
    """The page as a file; where the LLM was not taught to read faces, it cannot be chosen to answer."""
    values = {
        "version": __version__,
        "llm": "checked" if is_instruction_tuned else "disabled",
        "head": "" if is_instruction_tuned else "checked",
        "untaught": "" if is_instruction_tuned else " (not taught to read faces yet)",
    }
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


class Demo:
    """Handlers around a `Service`. Everything that runs the model goes through one thread."""

    def __init__(self, service: Service):
        self.service = service
        self.page = page(service.answerer.is_instruction_tuned)
        self.model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.picture_threads = ThreadPoolExecutor(PICTURES_AT_ONCE, thread_name_prefix="picture")
        self.waiting = 0
        self.held = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request, most: int) -> AsyncIterator[bytes]:
        """Receives a request's body, and counts the request among those that wait until the block ends.

        A slow upload keeps nobody else waiting: no thread and no part of the model is taken before it is complete.
        """
        if self.waiting >= MOST_WAITING:
            raise _Busy
        self.waiting += 1
        parts, size = [], 0
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                stream = request.stream()
                while part := await asyncio.wait_for(anext(stream, b""), PIECE_SECONDS):
                    size += len(part)
                    self.held += len(part)
                    if size > most:
                        raise _TooLarge
                    if self.held > MOST_HELD:
                        raise _Busy
                    parts.append(part)
            yield b"".join(parts)
        finally:
            self.waiting -= 1
            self.held -= size

    async def run(self, request: Request, pool: ThreadPoolExecutor, work: Callable, *arguments):
        """Runs `work` in a thread; what has not begun when the visitor leaves is dropped."""
        submitted = pool.submit(work, *arguments)
        return await _attended(request, asyncio.wrap_future(submitted), submitted.cancel)

    async def home(self, request: Request) -> Response:
        """The page. Its only script is its own, allowed by a nonce made for this visit."""
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
            "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return HTMLResponse(self.page.replace("{{nonce}}", nonce), headers=headers)

    async def faces(self, request: Request) -> Response:
        """Picture in, face crops out."""
        async with self.body(request, LARGEST_UPLOAD) as data:
            whole = request.query_params.get("whole") == "1"
            return _json(await self.run(request, self.picture_threads, self.service.faces, data, whole))

    async def answers(self, request: Request) -> Response:
        """Face crop in, every answer out."""
        async with self.body(request, LARGEST_CROP) as data:
            return _json(await self.run(request, self.model_thread, self.service.answers, data, _switches(request)))

    async def card(self, request: Request) -> Response:
        """Face crop in, answer card out (PNG)."""
        return await self._drawn(request, self.service.card)

    async def why(self, request: Request) -> Response:
        """Face crop in, the attribution of one answer out (PNG)."""
        return await self._drawn(request, self.service.why, request.query_params.get("question", ""))

    async def _drawn(self, request: Request, draw: Callable[..., bytes], *arguments) -> Response:
        async with self.body(request, LARGEST_CROP) as data:
            drawn = await self.run(request, self.model_thread, draw, data, _switches(request), *arguments)
        return Response(drawn, media_type="image/png", headers={"Cache-Control": "no-store"})

    async def example(self, request: Request) -> Response:
        """An example face, as a file."""
        return Response(example(request.path_params["name"]), media_type="image/jpeg")

    async def ask(self, request: Request) -> Response:
        """Face crop and question in; lines of JSON out, as the answer grows."""
        loop, gone = asyncio.get_running_loop(), threading.Event()
        items: asyncio.Queue[Any] = asyncio.Queue()

        def put(item) -> None:
            # After the loop has stopped nobody waits for it.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(items.put_nowait, item)

        def work(data: bytes) -> None:
            try:
                for item in self.service.ask(data, request.query_params.get("question", ""), _switches(request)):
                    put(item)
                    if gone.is_set():
                        return
            except Exception as error:
                put(error)
            finally:
                put(None)

        async with self.body(request, LARGEST_CROP) as data:
            task = self.model_thread.submit(work, data)

            def leave() -> bool:
                gone.set()
                return task.cancel() or True

            # The first item is waited for here, so that a mistake still gets a status of its own.
            first = await _attended(request, asyncio.create_task(items.get()), leave)
        if isinstance(first, Exception):
            raise first

        async def lines():
            item = first
            try:
                while item is not None:
                    if isinstance(item, Exception):
                        item = {"error": _message(item), "done": True}
                    yield json.dumps(item, ensure_ascii=False) + "\n"
                    item = await items.get()
            finally:
                gone.set()

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})


async def _attended(request: Request, future: asyncio.Future, leave: Callable[[], bool]):
    """Waits for a result while the visitor is there; afterwards until `leave` says that it was given up."""
    while not (await asyncio.wait({future}, timeout=LOOK_SECONDS))[0]:
        if await request.is_disconnected() and leave():
            future.cancel()
            raise ClientDisconnect
    return future.result()


def _switches(request: Request) -> Switches:
    given = {f.name: request.query_params[f.name] == "1" for f in fields(Switches) if f.name in request.query_params}
    return Switches(**given)


def _json(values: dict) -> Response:
    return JSONResponse(values, headers={"Cache-Control": "no-store"})


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else "Something went wrong on the server; its log says what."


def _fault(status: int, message: str | None = None, headers: dict | None = None):
    async def handle(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": message or _message(error)}, status, headers=headers)

    return handle


def make_app(
    service: Service, hosts: Iterable[str] = ("localhost", "127.0.0.1", "::1"), any_address: bool = False
) -> Starlette:
    """Returns the ASGI application. It answers under the names `hosts`, and at any address with `any_address`."""
    demo = Demo(service)
    too_large = f"The picture has more than {LARGEST_UPLOAD >> 20} MB; scale it down."

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        yield
        demo.model_thread.shutdown(wait=False, cancel_futures=True)
        demo.picture_threads.shutdown(wait=False, cancel_futures=True)

    return Starlette(
        routes=[
            Route("/", demo.home),
            Route("/api/faces", demo.faces, methods=["POST"]),
            Route("/api/answers", demo.answers, methods=["POST"]),
            Route("/api/card", demo.card, methods=["POST"]),
            Route("/api/why", demo.why, methods=["POST"]),
            Route("/api/ask", demo.ask, methods=["POST"]),
            Route("/examples/{name}", demo.example),
        ],
        middleware=[Middleware(Guard, hosts=hosts, any_address=any_address)],
        exception_handlers={
            UserError: _fault(422),
            _Busy: _fault(503, "Many people are asking just now; try again in a moment.", {"Retry-After": "5"}),
            _TooLarge: _fault(413, too_large),
            TimeoutError: _fault(408, "The upload took too long."),
            ClientDisconnect: _fault(400, "The upload broke off."),
            Exception: _fault(500),
        },
        lifespan=lifespan,
    )
