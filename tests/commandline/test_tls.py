"""``orisun`` over TLS, called by a client certificate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from orisun_server.settings import Settings
from tests.commandline.conftest import Orisun
from tests.harness import Connection, free_port
from tests.integration.test_tls import AUTHORITY, issue, written


async def test_a_client_certificate_is_enough(
    cli: Orisun,
    tmp_path: Path,
    make_settings: Callable[..., Settings],
    make_server: Callable[..., Awaitable[Connection]],
) -> None:
    client = issue("ann", AUTHORITY)
    (tmp_path / "client.crt").write_bytes(client.certificate)
    (tmp_path / "client.key").write_bytes(client.key)
    files = written(tmp_path, issue("localhost", AUTHORITY))
    page = free_port()
    server = await make_server(
        make_settings(**files, grpc_tls_client_auth_required=True, grpc_tls_client_users="ann=admin", admin_port=page)
    )
    environ = {
        "ORISUN_SERVER": f"localhost:{server.address.rpartition(':')[2]}", "ORISUN_CLIENT_USERNAME": "",
        "ORISUN_CLIENT_PASSWORD": "", "ORISUN_CLIENT_CERT": str(tmp_path / "client.crt"),
        "ORISUN_CLIENT_KEY": str(tmp_path / "client.key"),
    }  # fmt: skip
    trusting = environ | {"ORISUN_CLIENT_CA": str(tmp_path / "ca.crt")}
    users = await cli.ok("user", "list", "-o", "json", environ=trusting)
    assert [user["username"] for user in users.json] == ["admin"]
    looked = await cli.ok("doctor", "--admin-url", f"https://localhost:{page}", "-o", "json", environ=trusting)
    found = {one["check"].split(" of ")[0]: one for one in looked.json}
    assert (found["certificate"]["level"], "1 days" in found["certificate"]["found"]) == ("warning", True)
    assert found["clocks"]["level"] == found["NATS"]["level"] == "ok"

    untrusting = await cli("user", "list", environ=environ)
    assert untrusting.code == 4
    assert "--ca" in untrusting.err
    assert untrusting.err.count("\n") == 1
    missing = await cli("user", "list", "--ca", str(tmp_path / "nope.crt"), environ=environ)
    assert (missing.code, "nope.crt cannot be read" in missing.err) == (2, True)
