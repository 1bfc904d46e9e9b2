"""Who is at the page: sign-in by cookie, and the proof that a form came from a page of ours.

The cookie holds a session token (admin/sessions.py) that is good for the page alone, signed together with a nonce of
this sign-in: signing out ends it on every server, also for whoever has copied it. A script cannot read it (HttpOnly),
no other site sends it along (SameSite=Strict), and it is new at each sign-in, so that a cookie planted before is worth
nothing. Forms carry a value that follows from the nonce; and a browser that says that a request comes from another site
is refused whatever it carries.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...core.proxies import Proxies
from ...core.users import Caller
from ...errors import InvalidArgument, PermissionDenied, Unauthenticated
from ..sessions import DEVICE_LIFETIME, LIFETIME, PageSession, Sessions

_COOKIE = "orisun_session"
#: Shows that its user has signed in with this browser before; lets nobody in (admin/logins.py).
_DEVICE_COOKIE = "orisun_device"

#: Everything comes from this server, nothing runs inline, no frame shows the page.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class SignedIn(NamedTuple):
    """Somebody who is signed in."""

    caller: Caller
    #: What forms carry.
    csrf: str
    #: The cookie to set when the session was prolonged, "" to leave it.
    cookie: str
    session: PageSession


class SignIns:
    """Begins, recognises and ends sign-ins."""

    async def begin(self, sessions: Sessions, username: str, password: str, request: Request) -> SignedIn:
        """Signs somebody in. Raises Unauthenticated, or ResourceExhausted after too many wrong passwords."""
        if not username or not password or "\0" in username or ":" in username:
            raise Unauthenticated("invalid credentials")
        basic = "Basic " + base64.b64encode(f"{username}:{password}".encode(errors="surrogatepass")).decode()
        device = request.cookies.get(_cookie_name(request, _DEVICE_COOKIE), "")
        found = await sessions.authenticate(basic, None, lambda: peer_of(request), device=device)
        cookie = sessions.page_token(found.caller)
        session = sessions.page_session(cookie)
        if session is None:
            raise Unauthenticated("invalid credentials")
        return SignedIn(found.caller, _csrf(session.nonce), cookie, session)

    def remember(self, sessions: Sessions, request: Request, response: Response, caller: Caller) -> None:
        """The browser keeps that the caller has signed in with it."""
        name = _cookie_name(request, _DEVICE_COOKIE)
        if not sessions.place(request.cookies.get(name, ""), caller.username):
            _set(request, response, name, sessions.device_token(caller), DEVICE_LIFETIME)

    def find(self, sessions: Sessions, request: Request) -> SignedIn | None:
        """Who sent the request; None for nobody."""
        session = sessions.page_session(request.cookies.get(_cookie_name(request), ""))
        if session is None:
            return None
        fresh = sessions.page_token(session.caller, session.nonce) if sessions.is_ageing(session) else ""
        return SignedIn(session.caller._replace(peer=peer_of(request)), _csrf(session.nonce), fresh, session)

    def set(self, request: Request, response: Response, cookie: str) -> None:
        _set(request, response, _cookie_name(request), cookie, LIFETIME)

    async def end(self, sessions: Sessions, session: PageSession, request: Request, response: Response) -> None:
        await sessions.sign_out(session)
        response.delete_cookie(
            _cookie_name(request), path="/", secure=is_secure(request), httponly=True, samesite="strict"
        )


def check_origin(request: Request) -> None:
    """Raises PermissionDenied when the browser says that a form comes from elsewhere."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        raise PermissionDenied("the request came from another site")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise PermissionDenied("the request came from another site")


def check_csrf(wanted: str, given: str) -> None:
    """Raises PermissionDenied unless the form is one of ours."""
    if not hmac.compare_digest(given.encode(errors="replace"), wanted.encode()):
        raise PermissionDenied("the form is too old or not of this page; load it again")


def is_secure(request: Request) -> bool:
    """Whether the browser spoke TLS, with this server or with a proxy that is believed; then cookies never leave it."""
    return request.url.scheme == "https"


def _cookie_name(request: Request, name: str = _COOKIE) -> str:
    return f"__Host-{name}" if is_secure(request) else name


def _set(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        name, value, max_age=seconds, path="/", secure=is_secure(request), httponly=True, samesite="strict"
    )


def peer_of(request: Request) -> str:
    """The address that a request came from, beyond the proxies that are believed."""
    return request.client.host if request.client else ""


def local_path(text: str) -> str:
    """Where to go after signing in: a path of this server, else the overview."""
    plain = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and "\\" not in text
    return text if plain and not urlsplit(text).netloc else "/"


def check_text(field: str, text: str, most: int = 1_000) -> str:
    """A text of a form. Raises InvalidArgument."""
    if len(text) > most or "\0" in text:
        raise InvalidArgument(f"{field}: at most {most} characters, and no NUL")
    return text


def _csrf(nonce: str) -> str:
    return hashlib.sha256(f"orisun form {nonce}".encode()).hexdigest()[:40]


class SecurityHeaders:
    """Adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        headers = HEADERS | ({"strict-transport-security": "max-age=31536000"} if secure else {})
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self._app(scope, receive, with_headers)


class BehindProxies:
    """Requests that come through a proxy that is believed are as it saw them: from that address, by that scheme."""

    def __init__(self, app: ASGIApp, *, proxies: Proxies) -> None:
        self._app, self._proxies = app, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client and self._proxies.trusts(client[0]):
            headers = Headers(scope=scope)
            # the last of them all is what the proxy saw: one that adds a header of its own leaves the client's first
            scheme = ",".join(headers.getlist("x-forwarded-proto")).rpartition(",")[2].strip().lower()
            peer = self._proxies.client(client[0], headers.getlist("x-forwarded-for"))
            scope = {**scope, "client": (peer, 0), "scheme": scheme if scheme in ("http", "https") else scope["scheme"]}
        await self._app(scope, receive, send)
