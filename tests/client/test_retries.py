"""Which calls are made again when no server answers, how soon, and which never."""

from __future__ import annotations

import collections
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

import orisun
from orisun import NewEvent, RetryPolicy

Make = Callable[..., orisun.Client]


class Unwilling(grpc.GenericRpcHandler):
    """Answers every call that nobody is there, and counts them."""

    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        name = str(details.method).rpartition("/")[2]

        async def refuse(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            self.calls[name] += 1
            return await context.abort(grpc.StatusCode.UNAVAILABLE, "nobody is there")

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
async def unwilling() -> AsyncIterator[tuple[str, Unwilling]]:
    handler = Unwilling()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", handler
    await server.stop(None)


async def test_only_what_is_safe_to_repeat_is_tried_again(unwilling: tuple[str, Unwilling], make_client: Make) -> None:
    address, handler = unwilling
    client = make_client(address, retry=RetryPolicy(attempts=4, first=0.001, longest=0.002))
    orders, admin = client.boundary("orders"), client.admin
    safe = {
        "Ping": client.ping(),
        "SaveEvents": orders.append([NewEvent("A")]),
        "GetEvents": anext(orders.read()),
        "GetLatestByCriteria": orders.latest(orisun.where("A")),
        "ListBoundaries": admin.boundaries(),
        "ListUsers": admin.users(),
        "ListIndexes": admin.indexes("orders"),
    }
    unsafe = {
        "PublishToPubSub": client.publish("news", "x"),
        "CreateBoundary": admin.create_boundary("other", schema="other"),
        "CreateUser": admin.create_user("user", "password", ["READER"]),
        "DeleteUser": admin.delete_user("u"),
        "ChangePassword": admin.change_password("u", "old", "new"),
        "RevokeToken": admin.revoke_token("t"),
    }
    for call in (*safe.values(), *unsafe.values()):
        with pytest.raises(orisun.Unavailable, match="nobody is there"):
            await call
    assert handler.calls == dict.fromkeys(safe, 4) | dict.fromkeys(unsafe, 1)


def test_pauses_are_drawn_below_a_bound_that_grows() -> None:
    """Full jitter: from nothing to the bound, so that clients that failed together do not come back together."""
    policy = RetryPolicy(attempts=10, first=0.1, longest=1.0)
    for failures, bound in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (1_000, 1.0)):
        drawn = [policy.pause(failures) for _ in range(500)]
        assert 0 <= min(drawn) < 0.1 * bound
        assert 0.9 * bound < max(drawn) <= bound
    assert [policy.allows(failures) for failures in (1, 9, 10)] == [True, True, False]
    assert not orisun.NEVER.allows(1)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first": -1.0}, {"first": 2.0, "longest": 1.0}])
def test_policies_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(orisun.InvalidArgument, match="RetryPolicy"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
