"""Profiles over HTTP on a port of their own (ORISUN_PPROF_PORT), at the paths of pprof's tools; for ADMIN only."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...core import audit
from ...core.access import PAGES, check
from ...core.proxies import Proxies
from ...core.users import Caller
from ...errors import OrisunError, PermissionDenied, ResourceExhausted, Unauthenticated
from ...telemetry import profiling
from .parts import State
from .security import BehindProxies, SecurityHeaders, peer_of

_DEFAULT_SECONDS, _MOST_SECONDS = 10.0, 120.0
_INDEX = """\
Profiles of this server, as gzipped pprof files. ?seconds=N says how long to look (10; at most 120).

/debug/pprof/profile    where the processor's time goes
/debug/pprof/heap       what is allocated while it looks, and stays

go tool pprof -http : profile.pb.gz, or drop the file on a speedscope page.
"""


def build_profiles(state: State, *, proxies: Proxies) -> Starlette:
    """The application of the profiles' port; ``proxies`` are believed about where a request comes from."""

    async def index(request: Request) -> Response:
        admitted = await _admitted(state, request)
        return admitted if isinstance(admitted, Response) else Response(_INDEX, media_type="text/plain")

    async def cpu(request: Request) -> Response:
        return await taken(request, "profile")

    async def heap(request: Request) -> Response:
        return await taken(request, "heap")

    async def taken(request: Request, kind: str) -> Response:
        admitted = await _admitted(state, request)
        if isinstance(admitted, Response):
            return admitted
        response = await _profile(request, kind)
        if response.status_code == 200 and state.parts is not None:
            await state.parts.audit.acted(audit.PROFILE_TAKEN, admitted, kind=kind)
        return response

    routes = [
        Route("/debug/pprof/", index),
        Route("/debug/pprof/profile", cpu),
        Route("/debug/pprof/heap", heap),
    ]
    middleware = [Middleware(SecurityHeaders, secure=False), Middleware(BehindProxies, proxies=proxies)]
    return Starlette(routes=routes, middleware=middleware)


async def _profile(request: Request, kind: str) -> Response:
    try:
        seconds = float(request.query_params.get("seconds", _DEFAULT_SECONDS))
        if not 0 < seconds <= _MOST_SECONDS:
            raise ValueError
    except ValueError:
        return Response(f"seconds: a number up to {_MOST_SECONDS:g}\n", 400, media_type="text/plain")
    try:
        body = await (profiling.cpu(seconds) if kind == "profile" else profiling.heap(seconds))
    except profiling.AlreadyProfiling as error:
        return Response(f"{error}\n", 409, media_type="text/plain")
    headers = {"content-disposition": f'attachment; filename="orisun-{kind}.pb.gz"', "cache-control": "no-store"}
    return Response(body, media_type="application/octet-stream", headers=headers)


async def _admitted(state: State, request: Request) -> Response | Caller:
    """The caller, who is an ADMIN; or why there is nothing for whoever it is."""
    parts = state.parts
    if parts is None:
        return Response("the server is starting\n", 503, media_type="text/plain")
    try:
        session = await parts.sessions.authenticate(
            request.headers.get("authorization"), request.headers.get("x-auth-token"), lambda: peer_of(request)
        )
    except Unauthenticated as error:
        return Response(f"{error}\n", 401, {"www-authenticate": 'Basic realm="orisun"'}, "text/plain")
    except ResourceExhausted as error:
        return Response(f"{error}\n", 429, media_type="text/plain")
    except OrisunError as error:
        return Response(f"{error}\n", 503, media_type="text/plain")
    caller = session.caller._replace(peer=peer_of(request))
    try:
        check("profiles", PAGES, caller)
    except PermissionDenied as error:
        parts.audit.denied(caller, "page profiles")
        return Response(f"{error}\n", 403, media_type="text/plain")
    return caller
