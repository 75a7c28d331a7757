"""What keeps others away from the demo and slow visitors from blocking it: names, origins, headers, connections, times."""

import asyncio
import ipaddress
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import h11
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

Message = MutableMapping[str, Any]
# A name or an address, and perhaps a port.
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::\d+)?", re.ASCII)
# Open connections of one address; more are closed at once. A proxy in front counts as one address.
MOST_CONNECTIONS = 128
# Seconds that the head of a request may take, from the first byte (or the connection) on.
HEAD_SECONDS = 10.0
# Seconds that open requests have when the server stops.
STOP_SECONDS = 3


class Guard:
    """ASGI middleware: answers to known host names alone, and to requests of its own page alone."""

    def __init__(self, app, hosts: Iterable[str] = (), any_address: bool = False):
        """`hosts` are names under which the page is reached; with `any_address` every IP address is one too.

        Other names are refused, since a foreign page could point a name of its own here (DNS rebinding). That cannot
        be done with an address.
        """
        self.app, self.hosts, self.any_address = app, {name.lower() for name in hosts}, any_address

    async def __call__(self, scope: Message, receive: Callable, send: Callable[[Message], Awaitable[None]]) -> None:
        """Checks a request, and adds headers to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope))
        answer = JSONResponse({"error": refused[1]}, refused[0]) if refused else self.app
        try:
            await answer(scope, receive, send_guarded)
        except asyncio.CancelledError:
            # The server stops: what is still open is told so, and is no error of ours.
            if not started:
                await JSONResponse({"error": "The server has been stopped."}, 503)(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        named = _HOST.fullmatch(host.lower())
        if named is None or not self._is_own(named[1].strip("[]")):
            return 400, "This name is not known here; start the server with --allow-host NAME."
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        foreign = origin not in (None, f"http://{host}", f"https://{host}") or site not in ("same-origin", "none")
        return (403, "Another page must not send pictures here.") if method == "POST" and foreign else None

    def _is_own(self, name: str) -> bool:
        if name in self.hosts or not self.any_address:
            return name in self.hosts
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose request head does not come, and too many of one address."""

    open_connections: Counter[str] = Counter()
    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        """Counts the connection, and starts to wait for its first request."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self.open_connections[self.address] += 1
        if self.open_connections[self.address] > MOST_CONNECTIONS:
            transport.close()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        """Waits for the rest of a head that came in part."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        elif self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Counts the connection out."""
        super().connection_lost(exc)
        self.open_connections[self.address] -= 1
        if self.deadline is not None:
            self.deadline.cancel()

    def _wait(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)


def make_server(app) -> uvicorn.Server:
    """A server of the application with these limits, which stops within `STOP_SECONDS` of being told to."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        limit_concurrency=1000,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return uvicorn.Server(config)
