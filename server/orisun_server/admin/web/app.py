"""The application of the admin port: routes, headers of every answer, metrics and probes."""

from __future__ import annotations

import email.utils
import json

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ...core.access import PAGES, check
from ...core.proxies import Proxies
from ...core.users import Caller
from ...errors import OrisunError, PermissionDenied, ResourceExhausted, Unauthenticated
from .context import STATIC, Context, Handler, Site, done_of, forget_done
from .exposition import Exposition
from .pages import boundary, commands, events, indexes, operations, overview, people
from .parts import Parts, State
from .security import BehindProxies, SecurityHeaders, check_origin, local_path, peer_of

_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_MOST_SIGN_IN_BYTES = 16 * 1024

#: Path, page of core/access.py, what a GET shows, what a POST does.
_PAGES: tuple[tuple[str, str, Handler | None, Handler | None], ...] = (
    ("/", "overview", overview.overview, None),
    ("/boundaries/new", "boundary: create", overview.new_boundary, overview.create_boundary),
    ("/b/{boundary}", "boundary", boundary.boundary, None),
    ("/b/{boundary}/events", "events", events.events, None),
    ("/b/{boundary}/events/go", "events", events.go_to, None),
    ("/b/{boundary}/events/live", "events: live tail", events.live, None),
    ("/b/{boundary}/events/{position}", "events", events.event, None),
    ("/b/{boundary}/commands", "commands", commands.commands, None),
    ("/b/{boundary}/commands/{position}", "commands", commands.command, None),
    ("/b/{boundary}/indexes", "indexes", indexes.indexes, None),
    ("/b/{boundary}/indexes/new", "indexes: create, drop", indexes.new_index, indexes.create_index),
    ("/b/{boundary}/indexes/{name}/drop", "indexes: create, drop", indexes.ask_drop, indexes.drop),
    ("/subscriptions", "subscriptions", operations.subscriptions, None),
    ("/queries", "queries", operations.queries, None),
    ("/users", "users and tokens", people.users, None),
    ("/users/new", "users and tokens", people.new_user, people.create_user),
    ("/users/{user_id}", "users and tokens", people.user, people.set_roles),
    ("/users/{user_id}/delete", "users and tokens", people.ask_delete, people.delete),
    ("/tokens", "users and tokens", people.tokens, None),
    ("/tokens/new", "users and tokens", people.new_token, people.create_token),
    ("/tokens/{token_id}/revoke", "users and tokens", people.ask_revoke, people.revoke),
    ("/audit", "audit", operations.audit, None),
    ("/configuration", "configuration", operations.configuration, None),
    ("/account", "own password", people.account, people.change_password),
)


def build(state: State, *, secure: bool, proxies: Proxies) -> Starlette:
    """The application; ``secure`` says that it is served over TLS, ``proxies`` are believed about where from."""
    site = Site(state)
    endpoints = _Endpoints(site)
    routes = [
        Route("/healthz", endpoints.alive),
        Route("/readyz", endpoints.ready),
        Route("/metrics", endpoints.metrics),
        Route("/queries.json", endpoints.queries),
        Route("/sign-in", endpoints.show_sign_in, methods=["GET"]),
        Route("/sign-in", endpoints.sign_in, methods=["POST"]),
        Route("/sign-out", site.page("own password", endpoints.sign_out), methods=["POST"]),
        Route("/favicon.ico", endpoints.icon),
        Route("/static/{version}/{name}", endpoints.static),
    ]
    for path, name, get, post in _PAGES:
        if get is not None:
            routes.append(Route(path, site.page(name, get), methods=["GET"]))
        if post is not None:
            routes.append(Route(path, site.page(name, post), methods=["POST"]))
    middleware = [Middleware(SecurityHeaders, secure=secure), Middleware(BehindProxies, proxies=proxies)]
    app = Starlette(routes=routes, middleware=middleware)
    app.add_exception_handler(404, endpoints.not_found)
    app.add_exception_handler(405, endpoints.not_found)
    app.add_exception_handler(Exception, endpoints.broken)
    return app


class _Endpoints:
    """What needs no sign-in, or asks for it in its own way."""

    def __init__(self, site: Site) -> None:
        self._site, self._state = site, site.state
        self._exposition = Exposition()

    async def alive(self, _: Request) -> Response:
        """The process runs and its loop turns."""
        return Response("ok\n", media_type="text/plain")

    async def ready(self, _: Request) -> Response:
        """Whether calls are served; NATS plays no part (design.md, 5)."""
        health = self._state.health
        status = ("degraded" if health.degraded else "ready") if health.serving else "not ready"
        told = {
            "status": status,
            "postgresql": "ok" if health.storage_ok else "unavailable",
            "nats": "ok" if health.delivery_ok else "unavailable",
        }
        code = 200 if health.serving else 503
        # by the date `orisun doctor` compares clocks
        now = {"date": email.utils.formatdate(usegmt=True)}
        return Response(json.dumps(told) + "\n", code, now, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        parts = self._state.parts
        if parts is None:
            return Response("the server is starting\n", 503, media_type="text/plain")
        if (
            not parts.settings.admin_metrics_public
            and (refused := await self._refused(request, parts, "metrics")) is not None
        ):
            return refused
        body, media_type = await self._exposition.body(parts, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": media_type, "cache-control": "no-store"})

    async def queries(self, request: Request) -> Response:
        """For programs: shapes of criteria without an index, and the CreateIndex that would help."""
        parts = self._state.parts
        if parts is None:
            return Response("the server is starting\n", 503, media_type="text/plain")
        if (refused := await self._refused(request, parts, "queries")) is not None:
            return refused
        told = [
            {"kind": entry.shape.kind, "count": entry.count, "create_index": entry.create_index}
            for entry in parts.watch.queries.entries(unindexed=True)
        ]
        return Response(json.dumps(told), headers={"cache-control": "no-store"}, media_type="application/json")

    async def show_sign_in(self, request: Request) -> Response:
        parts = self._state.parts
        if parts is None:
            return self._site.render("starting.html", 503)
        if self._site.sign_ins.find(parts.sessions, request) is not None:
            return RedirectResponse(local_path(request.query_params.get("next", "/")), 303)
        # nothing else: whoever is not signed in learns of nothing that was done
        response = self._sign_in(request, told=told if (told := done_of(request)) == people.PASSWORD_CHANGED else "")
        forget_done(request, response)
        return response

    async def sign_in(self, request: Request) -> Response:
        parts = self._state.parts
        if parts is None:
            return self._site.render("starting.html", 503)
        form: dict[str, str] = {}
        try:
            self._check_origin(request, parts)
            form = await _small_form(request)
            signed_in = await self._site.sign_ins.begin(
                parts.sessions, form.get("username", ""), form.get("password", ""), request
            )
        except Unauthenticated:
            return self._sign_in(
                request, form, problem="That user name and password do not belong together.", status=401
            )
        except ResourceExhausted as error:
            return self._sign_in(request, form, problem=str(error), status=429)
        except PermissionDenied as error:
            return self._sign_in(request, form, problem=str(error), status=403)
        except OrisunError:
            return self._sign_in(request, form, problem="The server cannot check passwords now. Try again.", status=503)
        target = local_path(form.get("next", "/"))
        if target == "/" and not _sees_overview(signed_in.caller):
            target = "/account"
        response = RedirectResponse(target, 303)
        self._site.sign_ins.set(request, response, signed_in.cookie)
        self._site.sign_ins.remember(parts.sessions, request, response, signed_in.caller)
        return response

    async def sign_out(self, context: Context) -> Response:
        response = RedirectResponse("/sign-in", 303)
        await context.sign_out(response)
        return response

    async def static(self, request: Request) -> Response:
        body = STATIC.get(request.path_params["name"])
        if body is None:
            return Response("not found\n", 404, media_type="text/plain")
        kind = _TYPES[request.path_params["name"].rpartition(".")[2]]
        return Response(body, media_type=kind, headers={"cache-control": "public, max-age=31536000, immutable"})

    async def icon(self, _: Request) -> Response:
        return Response(STATIC["icon.svg"], media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})

    async def not_found(self, request: Request, _: Exception) -> Response:
        return self._site.render("lost.html", 404, title="Not found", text="There is no such page.")

    async def broken(self, request: Request, _: Exception) -> Response:
        text = "This page failed. The server's log says more; the store goes on."
        return self._site.render("lost.html", 500, title="That failed", text=text)

    def _sign_in(
        self,
        request: Request,
        form: dict[str, str] | None = None,
        *,
        problem: str = "",
        told: str = "",
        status: int = 200,
    ) -> Response:
        form = form or {}
        path = local_path(form.get("next", request.query_params.get("next", "/")))
        return self._site.render(
            "sign_in.html", status, problem=problem, told=told, next=path, username=form.get("username", "")[:255]
        )

    @staticmethod
    def _check_origin(request: Request, parts: Parts) -> None:
        try:
            check_origin(request)
        except PermissionDenied:
            stranger = Caller("", "", frozenset(), 0, via="", peer=peer_of(request))
            parts.audit.denied(stranger, "form of the sign-in, from elsewhere")
            raise

    @staticmethod
    async def _refused(request: Request, parts: Parts, page: str) -> Response | None:
        try:
            session = await parts.sessions.authenticate(
                request.headers.get("authorization"), request.headers.get("x-auth-token"), lambda: peer_of(request)
            )
        except Unauthenticated as error:
            return Response(f"{error}\n", 401, {"www-authenticate": 'Basic realm="orisun"'}, "text/plain")
        except ResourceExhausted as error:
            return Response(f"{error}\n", 429, media_type="text/plain")
        try:
            check(page, PAGES, session.caller)
        except PermissionDenied as error:
            parts.audit.denied(session.caller._replace(peer=peer_of(request)), f"page {page}")
            return Response(f"{error}\n", 403, media_type="text/plain")
        return None


def _sees_overview(caller: Caller) -> bool:
    try:
        check("overview", PAGES, caller)
    except PermissionDenied:
        return False
    return True


async def _small_form(request: Request) -> dict[str, str]:
    from urllib.parse import parse_qsl

    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_SIGN_IN_BYTES:
            raise Unauthenticated("invalid credentials")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=10))
    except ValueError:
        raise Unauthenticated("invalid credentials") from None
