"""Who is let in: a good API key where keys are asked for, its scope, its rate; and no pages of strangers.

Pure ASGI, before any route is chosen, so that no route can forget it. It is on the way of every request, and takes
a few microseconds of it. Nothing of a key is ever logged but its id.
"""

import asyncio
import math
import time
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import WEBSOCKET, Needed, methods_at
from service.key_ring import Holder, KeyRing
from service.problems import (
    FOREIGN_ORIGIN,
    HEAD_TOO_LARGE,
    METHOD_NOT_ALLOWED,
    MISSING_SCOPE,
    NOT_FOUND,
    RATE_LIMITED,
    UNAUTHENTICATED,
    ProblemError,
    describe_at,
    respond,
)
from service.rate_limit import BUCKET, BYTES_OF_A_UNIT
from service.settings import ANY_ORIGIN

KEY_ID = "hindcast.key_id"
"""Where the scope of a request has the id of its key."""

MOST_HEADERS = 100
LONGEST_ADDRESS = 8192

POLICY_VIOLATION = 1008

_HARMLESS = ("GET", "HEAD", "OPTIONS")


class AccessControl:
    """Refuses what may not be asked; charges what may."""

    def __init__(self, app: ASGIApp, ring: KeyRing, origins: Collection[str]) -> None:
        self.app = app
        self.ring = ring
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any_origin = ANY_ORIGIN in origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            holder = self._admit(scope)
        except ProblemError as error:
            problem = describe_at(scope, error.kind, error.detail)
            await respond(problem, error.headers)(scope, receive, send)
            return
        if holder is not None and scope["type"] == "websocket":
            receive = _Watched(receive, send, holder, self.ring).receive
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> Holder | None:
        """Return whose request this is, or None where nobody is asked.

        Raises:
            ProblemError: it is nobody's, or may not be answered.
        """
        _check_head(scope)
        if not self.ring.enforced:
            self._check_origin(scope)
            return None
        needed = _needed(scope)
        if needed == "open":
            return None
        holder = self._identify(scope)
        _check_scope(holder, needed)
        _charge(scope, holder)
        return holder

    def _check_origin(self, scope: Scope) -> None:
        """Refuse what a page of somebody else has a browser send without asking first.

        A browser lets any page open WebSockets and send plain POSTs to this machine, and says whose page it is. No
        page can have it send a key that way.
        """
        origin = _header(scope, b"origin")
        if origin is None or self._any_origin or origin in self._origins:
            return
        harmless = scope["type"] == "http" and scope["method"] in _HARMLESS
        if not harmless and origin.partition(b"://")[2] != _header(scope, b"host"):
            raise ProblemError(FOREIGN_ORIGIN, FOREIGN_ORIGIN.example)

    def _identify(self, scope: Scope) -> Holder:
        presented = _presented(scope)
        holder = self.ring.recognise(presented)
        if holder is None:
            raise _unauthenticated("the API key is not known here", "invalid_token")
        end = holder.end()
        if end is not None:
            raise _unauthenticated(f"{_describe(holder)} {end}", "invalid_token")
        holder.used = True
        return holder


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value)
    return None


def _presented(scope: Scope) -> bytes:
    """Return the key of a request, from `Authorization: Bearer` or `X-API-Key`; other schemes are a proxy's."""
    key: bytes | None = None
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, given = value.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
        elif name == b"x-api-key":
            given = value
        else:
            continue
        given = given.strip()
        if key not in (None, given):
            raise _unauthenticated("the request has two different keys", "invalid_request")
        key = given
    if not key:
        raise _unauthenticated(UNAUTHENTICATED.example)
    return key


def _unauthenticated(detail: str, code: str | None = None) -> ProblemError:
    challenge = 'Bearer realm="hindcast"' + (f', error="{code}"' if code else "")
    return ProblemError(UNAUTHENTICATED, detail, headers={"www-authenticate": challenge})


def _check_head(scope: Scope) -> None:
    if len(scope["headers"]) > MOST_HEADERS:
        raise ProblemError(HEAD_TOO_LARGE, f"there are {len(scope['headers'])} headers; at most {MOST_HEADERS}")
    length = len(scope["path"]) + len(scope["query_string"])
    if length > LONGEST_ADDRESS:
        raise ProblemError(HEAD_TOO_LARGE, f"the address has {length} characters; at most {LONGEST_ADDRESS}")


def _needed(scope: Scope) -> Needed:
    """Return what the address and method need; what is not in the table is not there."""
    methods = methods_at(scope["path"]) or {}
    if scope["type"] == "websocket":
        needed = methods.get(WEBSOCKET)
    else:
        method = scope["method"]
        needed = methods.get("GET" if method == "HEAD" else method)
        others = ", ".join(other for other in methods if other != WEBSOCKET)
        if needed is None and others:
            detail = f"{method} is not answered here; {others} is"
            raise ProblemError(METHOD_NOT_ALLOWED, detail, headers={"allow": others})
    if needed is None:
        raise ProblemError(NOT_FOUND, NOT_FOUND.example)
    return needed


def _check_scope(holder: Holder, needed: Needed) -> None:
    if needed not in holder.grants:
        detail = f"this needs the scope {needed!r}; {_describe(holder)} has {', '.join(holder.key.scopes)}"
        challenge = f'Bearer realm="hindcast", error="insufficient_scope", scope="{needed}"'
        raise ProblemError(MISSING_SCOPE, detail, headers={"www-authenticate": challenge})


def _charge(scope: Scope, holder: Holder) -> None:
    wait = holder.bucket.take(time.monotonic())
    if wait:
        seconds = math.ceil(wait)
        rate = f"{_describe(holder)} may use {holder.bucket.rate:g} units a second"
        detail = f"{rate}; try again in {seconds} second{'s' * (seconds > 1)}"
        raise ProblemError(RATE_LIMITED, detail, headers={"retry-after": str(seconds)})
    scope[BUCKET] = holder.bucket
    scope[KEY_ID] = holder.key.id


def _describe(holder: Holder) -> str:
    return f"key {holder.key.id} ({holder.key.name!r})"


class _Watched:
    """What a WebSocket's caller sends, as fast as its rate allows, and no longer than its key is good."""

    def __init__(self, receive: Receive, send: Send, holder: Holder, ring: KeyRing) -> None:
        self._receive = receive
        self._send = send
        self._holder = holder
        self._ring = ring

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "websocket.receive":
            return message
        if self._ring.ended(self._holder):
            await self._send(
                {"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "the key is not good"}
            )
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
        await self._pay(len(message.get("bytes") or message.get("text") or b""))
        return message

    async def _pay(self, size: int) -> None:
        bucket = self._holder.bucket
        wait = bucket.take(time.monotonic())
        if wait:
            await asyncio.sleep(wait)
            size += BYTES_OF_A_UNIT  # the one that could not be taken
        bucket.owe(size)
