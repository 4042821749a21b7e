"""The outermost layer: request ids, a log line each, metrics, security headers, the host's name and the size of a request."""

import re
import secrets
import time
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phantom_s2v.files.hosts import is_own
from phantom_s2v.studio.config import Settings
from phantom_s2v.studio.logs import LOG, REQUEST_ID
from phantom_s2v.studio.problems import N_, Problem, TooLarge
from phantom_s2v.studio.web.view import problem_answer

PROXY_ID = re.compile(r"[A-Za-z0-9-]{8,64}")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
STRICT_TRANSPORT = "max-age=31536000"


OTHER_NAME = "The studio is not served under this name; see PHANTOM_STUDIO_PUBLIC_URL."
SENT_TOO_MUCH = N_("What was sent is too large: at most %(megabytes)d MB at a time are allowed.")
FAILED = N_(
    "Something went wrong on our side. Please try again; if it happens again, give your administrator this number: %(request)s"
)


class Failure(Problem):
    """A defect of ours."""

    status = 500


class _TooLargeError(Exception):
    """More bytes came than are taken."""


class Outer:
    """What every request goes through, whatever the application does with it."""

    def __init__(
        self, app: ASGIApp, web: FastAPI, settings: Settings, names: frozenset[str], registry: CollectorRegistry
    ) -> None:
        self.app, self.web, self.settings, self.names = app, web, settings, names
        self.count = Counter("studio_requests", "Requests by route and status.", ["route", "status"], registry=registry)
        self.seconds = Histogram("studio_request_seconds", "Seconds until an answer.", ["route"], registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Request(scope).headers
        given = headers.get("x-request-id", "")
        identity = given if PROXY_ID.fullmatch(given) else secrets.token_hex(8)
        REQUEST_ID.set(identity)
        scope.setdefault("state", {})["request_id"] = identity
        began, status = time.perf_counter(), [0]
        answer = self._answering(send, identity, status)
        try:
            if not is_own(headers.get("host", ""), self.names):
                await PlainTextResponse(OTHER_NAME, 421)(scope, receive, answer)
            elif self._is_too_large(headers):
                await self._say(self._too_large(), scope, receive, answer)
            else:
                await self.app(scope, self._counted(receive), answer)
        except _TooLargeError:
            await self._say(self._too_large(), scope, receive, answer)
        except Exception:
            LOG.exception("a request failed", extra={"values": {"route": _route(scope)}})
            if status[0]:
                raise
            await self._say(Failure(FAILED, request=identity), scope, receive, answer)
        finally:
            self._note(scope, status[0], time.perf_counter() - began)

    def _is_too_large(self, headers: Any) -> bool:
        length = headers.get("content-length", "0")
        return not (length.isascii() and length.isdigit()) or int(length) > self.settings.max_upload_bytes

    def _too_large(self) -> Problem:
        return TooLarge(SENT_TOO_MUCH, megabytes=self.settings.max_upload_bytes >> 20)

    async def _say(self, problem: Problem, scope: Scope, receive: Receive, answer: Send) -> None:
        """A page with a sentence in the person's language; where no page can be made, the sentence alone."""
        scope["app"] = self.web
        try:
            response = await run_in_threadpool(problem_answer, Request(scope), problem)
        except Exception:
            LOG.exception("no page could be made", extra={"values": {"route": _route(scope)}})
            response = PlainTextResponse(str(problem), problem.status)
        await response(scope, receive, answer)

    def _counted(self, receive: Receive) -> Receive:
        """What comes in, up to the limit: a request may say nothing of its length."""
        left = self.settings.max_upload_bytes

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLargeError
            return message

        return counted

    def _answering(self, send: Send, identity: str, status: list[int]) -> Send:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                present = {name.lower() for name, _ in message["headers"]}
                own = {**HEADERS, "X-Request-Id": identity, "Cache-Control": "no-store"}
                if self.settings.secure:
                    own["Strict-Transport-Security"] = STRICT_TRANSPORT
                added = [(name.lower().encode(), value.encode()) for name, value in own.items()]
                message["headers"] = [*message["headers"], *(each for each in added if each[0] not in present)]
            await send(message)

        return answer

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        self.count.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        values = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 4)}
        LOG.info("request", extra={"values": values})


def _route(scope: Scope) -> str:
    """The route of a request, never its address: one-time links stand in addresses."""
    return getattr(scope.get("route"), "path", "none")
