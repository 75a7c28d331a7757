"""The demo's HTTP side (Starlette): one page and four calls, bounded in memory, with one model thread."""

import asyncio
import contextlib
import json
import queue
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fi_jax import __version__
from fi_jax.demo.service import Service, Switches
from fi_jax.errors import UserError

LARGEST_UPLOAD = 128 * 2**20
LARGEST_CROP = 2 * 2**20
# Whole pictures are received and decoded this many at a time: 50 megapixels take 150 MB.
UPLOADS_AT_ONCE = 2
# Requests that may wait for the model; more are told to come back.
MOST_WAITING = 200
UPLOAD_SECONDS = 120


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
        self.picture_threads = ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="picture")
        self.uploads = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self.waiting = 0

    @contextlib.contextmanager
    def place(self):
        """Counts a request that waits; raises `_Busy` when there are too many."""
        if self.waiting >= MOST_WAITING:
            raise _Busy
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def home(self, request: Request) -> Response:
        """The page. Its only script is its own, allowed by a nonce made for this visit."""
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data: blob:; "
            "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return HTMLResponse(self.page.replace("{{nonce}}", nonce), headers=headers)

    async def faces(self, request: Request) -> Response:
        """Picture in, face crops out."""
        with self.place():
            async with self.uploads:
                data = await _body(request, LARGEST_UPLOAD)
                whole = request.query_params.get("whole") == "1"
                found = await _in(self.picture_threads, self.service.faces, data, whole)
        return _json(found)

    async def answers(self, request: Request) -> Response:
        """Face crop in, every answer out."""
        with self.place():
            data = await _body(request, LARGEST_CROP)
            return _json(await _in(self.model_thread, self.service.answers, data, _switches(request)))

    async def card(self, request: Request) -> Response:
        """Face crop in, answer card out (PNG)."""
        with self.place():
            data = await _body(request, LARGEST_CROP)
            drawn = await _in(self.model_thread, self.service.card, data, _switches(request))
        return Response(drawn, media_type="image/png", headers={"Cache-Control": "no-store"})

    async def ask(self, request: Request) -> Response:
        """Face crop and question in; lines of JSON out, as the answer grows."""
        with self.place():
            data = await _body(request, LARGEST_CROP)
            question, switches = request.query_params.get("question", ""), _switches(request)
            lines: queue.SimpleQueue = queue.SimpleQueue()
            gone = threading.Event()
            loop = asyncio.get_running_loop()
            ready = asyncio.Event()

            def work() -> None:
                try:
                    for item in self.service.ask(data, question, switches):
                        if gone.is_set():
                            break
                        lines.put(item)
                        loop.call_soon_threadsafe(ready.set)
                except Exception as error:
                    lines.put(error)
                lines.put(None)
                loop.call_soon_threadsafe(ready.set)

            async def next_line():
                while lines.empty():
                    ready.clear()
                    if lines.empty():
                        await ready.wait()
                return lines.get()

            task = loop.run_in_executor(self.model_thread, work)
            # The first item is waited for here, so that a mistake still gets a status of its own.
            first = await next_line()
        if isinstance(first, Exception):
            raise first

        async def body():
            item = first
            try:
                while item is not None:
                    if isinstance(item, Exception):
                        item = {"error": _message(item), "done": True}
                    yield json.dumps(item, ensure_ascii=False) + "\n"
                    item = await next_line()
            finally:
                gone.set()
                await task

        return StreamingResponse(body(), media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})


async def _in(pool: ThreadPoolExecutor, work: Callable, *arguments):
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


async def _body(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async with asyncio.timeout(UPLOAD_SECONDS):
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise _TooLarge
            parts.append(part)
    return b"".join(parts)


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


def make_app(service: Service, hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")) -> Starlette:
    """Returns the ASGI application. `hosts` are the names under which it answers; others are refused (DNS rebinding)."""
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
            Route("/api/ask", demo.ask, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
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
