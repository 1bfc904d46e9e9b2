"""What a page's function is given: who asks, the server's parts, and how to answer. Also: forms, errors, guards."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ...core.access import PAGES, check, check_boundary
from ...core.users import Caller
from ...errors import InvalidArgument, OrisunError, PermissionDenied, Status, Unavailable
from ...storage.boundaries import Boundary
from . import show
from .parts import Parts, State
from .security import SignedIn, SignIns, check_csrf, check_origin, is_secure

_log = structlog.get_logger(__name__)
T = TypeVar("T")

_DONE = "orisun_done"
_MOST_FORM_BYTES, _MOST_FIELDS = 64 * 1024, 200
_HTTP = {
    Status.INVALID_ARGUMENT: 400,
    Status.NOT_FOUND: 404,
    Status.ALREADY_EXISTS: 409,
    Status.FAILED_PRECONDITION: 409,
    Status.ABORTED: 409,
    Status.PERMISSION_DENIED: 403,
    Status.UNAUTHENTICATED: 401,
    Status.OUT_OF_RANGE: 400,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.UNAVAILABLE: 503,
}
#: Files of the page, by name; loaded once, so that no path from a request ever meets the file system.
STATIC: Mapping[str, bytes] = {
    name: (files(__package__) / "static" / name).read_bytes()
    for name in ("htmx.min.js", "page.js", "style.css", "icon.svg")
}
STATIC_VERSION = hashlib.sha256(b"".join(STATIC.values())).hexdigest()[:12]

Handler = Callable[["Context"], Awaitable[Response]]


def environment() -> Environment:
    """The templates; every value is escaped, and a missing one is an error."""
    env = Environment(
        loader=PackageLoader("orisun_server.admin.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= show.FILTERS
    env.globals |= {"static": lambda name: f"/static/{STATIC_VERSION}/{name}"} | show.GLOBALS
    return env


class Site:
    """What all requests share."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.sign_ins = SignIns()
        #: Open live tails, by user id.
        self.live_tails: Counter[str] = Counter()
        self.env = environment()

    def render(self, template: str, http_status: int = 200, **values: Any) -> HTMLResponse:
        text = self.env.get_template(template).render(**values)
        # pages tell of events and users: no copy stays in a shared browser
        return HTMLResponse(text, status_code=http_status, headers={"cache-control": "no-store"})

    def page(self, name: str, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a page that core/access.py has a rule for; a POST must come from a form of ours."""

        @functools.wraps(handler)
        async def endpoint(request: Request) -> Response:
            parts = self.state.parts
            if parts is None:
                return self.render("starting.html", 503)
            signed_in = self.sign_ins.find(parts.sessions, request)
            if signed_in is None:
                return _to_sign_in(request)
            context = Context(self, request, parts, signed_in, name)
            try:
                context.admit()
                if request.method == "POST":
                    await context.admit_form()
                response = await handler(context)
            except OrisunError as error:
                response = context.failed(error)
            if signed_in.cookie and context.is_signed_in:
                self.sign_ins.set(request, response, signed_in.cookie)
            return response

        return endpoint


class Context:
    """One request of somebody who is signed in."""

    def __init__(self, site: Site, request: Request, parts: Parts, signed_in: SignedIn, name: str) -> None:
        self.site, self.request, self.parts, self.name = site, request, parts, name
        self.caller: Caller = signed_in.caller
        self._csrf, self._session = signed_in.csrf, signed_in.session
        self._form: dict[str, str] | None = None

    @property
    def is_signed_in(self) -> bool:
        """Whether the sign-in goes on: neither signed out nor expired, and the user is as before."""
        return self.parts.sessions.goes_on(self._session)

    async def sign_out(self, response: Response) -> None:
        """Ends the sign-in, and takes the cookie back with the response."""
        await self.site.sign_ins.end(self.parts.sessions, self._session, self.request, response)

    @property
    def settings(self) -> Any:
        return self.parts.settings

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query_params

    @property
    def path(self) -> str:
        return self.request.url.path

    @property
    def is_fragment(self) -> bool:
        """Whether htmx asks for a part of a page."""
        return self.request.headers.get("hx-request") == "true" and "hx-boosted" not in self.request.headers

    @property
    def boundary(self) -> Boundary:
        """The boundary that the path names. Raises FailedPrecondition when it is not active."""
        return self.parts.catalog.get(self.request.path_params["boundary"])

    def may(self, name: str, boundary: str = "") -> bool:
        """Whether the caller may see another page (for that boundary), so that links lead somewhere."""
        try:
            check(name, PAGES, self.caller)
            if boundary:
                check_boundary(name, PAGES, self.caller, boundary, self.settings.admin_boundary)
        except PermissionDenied:
            return False
        return True

    def admit(self) -> None:
        """Raises PermissionDenied, and notes it, when the caller lacks the page's role."""
        boundary = self.request.path_params.get("boundary", "")
        try:
            check(self.name, PAGES, self.caller)
            if boundary:
                check_boundary(self.name, PAGES, self.caller, boundary, self.settings.admin_boundary)
        except PermissionDenied as error:
            self.parts.audit.denied(self.caller, f"page {self.name}", getattr(error, "boundary", ""))
            raise

    async def admit_form(self) -> None:
        """Raises PermissionDenied, and notes it, when the form is not one of ours."""
        try:
            check_origin(self.request)
            check_csrf(self._csrf, (await self.form()).get("csrf", ""))
        except PermissionDenied:
            self.parts.audit.denied(self.caller, f"form of page {self.name}, from elsewhere")
            raise

    async def form(self) -> dict[str, str]:
        """The fields of a form; of several with one name the last. Raises InvalidArgument."""
        if self._form is None:
            body = b""
            async for piece in self.request.stream():
                body += piece
                if len(body) > _MOST_FORM_BYTES:
                    raise InvalidArgument(f"the form has more than {_MOST_FORM_BYTES} bytes")
            try:
                pairs = parse_qsl(
                    body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, strict_parsing=False
                )
            except ValueError:
                raise InvalidArgument("the form cannot be read") from None
            # browsers send line ends as CRLF
            self._form = {name: value.replace("\r\n", "\n") for name, value in pairs}
        return self._form

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A number of the query, kept within bounds."""
        try:
            return max(least, min(most, int(self.query.get(name, ""))))
        except ValueError:
            return default

    def paged(self, found: Sequence[T], size: int, name: str = "page") -> tuple[Sequence[T], int, int]:
        """The part of a list that the query asks for, the number of that page, and how many there are."""
        pages = max(1, -(-len(found) // size))
        page = self.number(name, 1, 1, pages)
        return found[(page - 1) * size : page * size], page, pages

    def link(self, **changes: object) -> str:
        """This page with other values in its query; None removes one."""
        values = {**dict(self.query), **changes}
        kept = {name: str(value) for name, value in values.items() if value not in (None, "")}
        return f"{self.request.url.path}?{urlencode(kept)}" if kept else self.request.url.path

    def render(self, template: str, http_status: int = 200, **values: Any) -> HTMLResponse:
        shared = {
            "caller": self.caller,
            "csrf": self._csrf,
            "path": self.path,
            "done_text": done_of(self.request),
            "may": self.may,
            "link": self.link,
            "fragment": self.is_fragment,
            "degraded": self.site.state.health.degraded,
            "serving": self.site.state.health.serving,
            "admin_boundary": self.settings.admin_boundary,
        }
        response = self.site.render(template, http_status, **shared, **values)
        if not self.is_fragment:
            forget_done(self.request, response)
        return response

    def go(self, path: str, done: str = "") -> Response:
        """To another page after a change, which says there what was done."""
        response = RedirectResponse(path, status_code=303)
        if done:
            # a cookie, not the address: no link can make the page say what we did not
            response.set_cookie(
                _DONE, quote(done), max_age=30, path="/", secure=is_secure(self.request), httponly=True,
                samesite="strict",
            )  # fmt: skip
        return response

    def failed(self, error: OrisunError) -> Response:
        status = _HTTP.get(error.status, 500)
        if status == 500:
            _log.error("a page failed", page=self.name, problem=str(error))
        # where PostgreSQL is, is nobody's business here
        text = (
            "PostgreSQL cannot be reached now. The page comes back with it."
            if isinstance(error, Unavailable)
            else str(error)
        )
        return self.render("error.html", status, status=status, text=text, title=show.TITLES.get(status, "That failed"))


def done_of(request: Request) -> str:
    """What was done by the form that led here; "" where none did."""
    return unquote(request.cookies.get(_DONE, ""))[:300]


def forget_done(request: Request, response: Response) -> None:
    """It is said once."""
    if _DONE in request.cookies:
        response.delete_cookie(_DONE, path="/", secure=is_secure(request), httponly=True, samesite="strict")


def _to_sign_in(request: Request) -> Response:
    back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = "/sign-in" if back == "/" or request.method != "GET" else f"/sign-in?next={quote(back, safe='')}"
    if request.headers.get("hx-request") == "true":
        return Response(status_code=401, headers={"hx-redirect": "/sign-in"})
    return RedirectResponse(target, status_code=303)
