"""TLS and mutual TLS by the ORISUN_GRPC_TLS_* variables, the rotation of certificates, and mistakes in them."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orisun_api import admin_pb2
from orisun_api import eventstore_pb2 as pb
from orisun_server.settings import Settings
from orisun_server.transport.health import HealthState
from orisun_server.transport.server import GrpcServer, TransportError
from orisun_server.transport.tls import TlsError
from tests.harness import ADMIN, Connection, basic
from tests.integration.test_auth import refusal
from tests.integration.test_health import Nobody


class Pair(NamedTuple):
    """A certificate and its key, PEM, and what signs with them."""

    certificate: bytes
    key: bytes
    signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def issue(name: str, authority: Pair | None = None, password: bytes | None = None) -> Pair:
    """A certificate for localhost, without a subject for the name ""; without an authority, an authority itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    now = datetime.datetime.now(datetime.UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.signer[0].subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    if authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    certificate = builder.sign(authority.signer[1] if authority else key, hashes.SHA256())
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption),
        (certificate, key),
    )


AUTHORITY = issue("authority")


def written(directory: Path, pair: Pair) -> dict[str, Any]:
    """The settings of a server with that certificate."""
    (directory / "server.crt").write_bytes(pair.certificate)
    (directory / "server.key").write_bytes(pair.key)
    # bundles have comments in any language
    (directory / "ca.crt").write_bytes("# Főtanúsítvány\n".encode() + AUTHORITY.certificate)
    return {
        "grpc_tls_enabled": True,
        "grpc_tls_cert_file": directory / "server.crt",
        "grpc_tls_key_file": directory / "server.key",
        "grpc_tls_ca_file": directory / "ca.crt",
    }


def credentials(client: Pair | None = None) -> grpc.ChannelCredentials:
    if client is None:
        return grpc.ssl_channel_credentials(AUTHORITY.certificate)
    return grpc.ssl_channel_credentials(AUTHORITY.certificate, client.key, client.certificate)


@asynccontextmanager
async def connected(port: int, client: Pair | None = None) -> AsyncIterator[Connection]:
    connection = Connection(f"localhost:{port}", credentials(client))
    yield connection
    await connection.close()


@asynccontextmanager
async def bare(**values: Any) -> AsyncIterator[int]:
    """The port of a transport with health alone."""
    state = HealthState()
    state.set_storage(True)
    server = GrpcServer(Settings(grpc_host="127.0.0.1", grpc_port=0, **values), [], Nobody(), state)
    await server.start()
    yield server.port
    await server.stop(0)


async def test_a_server_with_tls(
    tmp_path: Path, make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    settings = make_settings(**written(tmp_path, issue("localhost", AUTHORITY)))
    plain = await make_server(settings)
    assert not await plain.is_serving()
    async with connected(int(plain.address.rpartition(":")[2])) as connection:
        await connection.events.Ping(pb.PingRequest(), metadata=ADMIN)


async def test_mutual_tls(tmp_path: Path) -> None:
    files = written(tmp_path, issue("localhost", AUTHORITY))
    stranger = issue("client", issue("another authority"))
    async with bare(**files, grpc_tls_client_auth_required=True) as port:
        async with connected(port, issue("client", AUTHORITY)) as connection:
            assert await connection.is_serving()
        for client in (None, stranger):
            async with connected(port, client) as connection:
                assert not await connection.is_serving()


async def test_without_client_authentication_no_authority_is_needed(tmp_path: Path) -> None:
    files = written(tmp_path, issue("localhost", AUTHORITY))
    (tmp_path / "ca.crt").unlink()
    async with bare(**files) as port, connected(port) as connection:
        assert await connection.is_serving()


def served_certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port))


async def test_certificates_rotate(tmp_path: Path) -> None:
    import asyncio

    first, second = issue("localhost", AUTHORITY), issue("localhost", AUTHORITY)
    async with bare(**written(tmp_path, first)) as port, connected(port) as before:
        assert await before.is_serving()
        # a rotation in progress: the new certificate beside the old key
        (tmp_path / "server.crt").write_bytes(second.certificate)
        async with connected(port) as meanwhile:
            assert await meanwhile.is_serving()
        assert await asyncio.to_thread(served_certificate, port) == first.certificate.decode()
        (tmp_path / "server.key").write_bytes(second.key)
        assert await asyncio.to_thread(served_certificate, port) == second.certificate.decode()
        async with connected(port) as after:
            assert await after.is_serving()
        assert await before.is_serving()


async def test_client_authentication_without_tls_is_a_mistake() -> None:
    with pytest.raises(TransportError, match="ORISUN_GRPC_TLS_ENABLED"):
        async with bare(grpc_tls_client_auth_required=True):
            pass


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: (at / "server.crt").unlink(), 'ORISUN_GRPC_TLS_CERT_FILE: ".*" cannot be read: No such file'),
        (lambda at: (at / "server.key").unlink(), 'ORISUN_GRPC_TLS_KEY_FILE: ".*" cannot be read: No such file'),
        (lambda at: (at / "ca.crt").unlink(), 'ORISUN_GRPC_TLS_CA_FILE: ".*" cannot be read: No such file'),
        (lambda at: (at / "server.crt").write_text("junk"), "ORISUN_GRPC_TLS_CERT_FILE: .*ORISUN_GRPC_TLS_KEY_FILE="),
        (lambda at: (at / "server.key").write_bytes(issue("x").key), "KEY_VALUES_MISMATCH"),
        (lambda at: (at / "ca.crt").write_text("junk"), 'ORISUN_GRPC_TLS_CA_FILE: ".*" holds no PEM certificates'),
        (lambda at: (at / "server.key").write_bytes(issue("x", password=b"p").key), "unencrypted private key"),
    ],
)
async def test_mistakes_name_the_variable(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    files = written(tmp_path, issue("localhost", AUTHORITY))
    spoil(tmp_path)
    with pytest.raises(TlsError, match=message):
        async with bare(**files, grpc_tls_client_auth_required=True):
            pass


async def test_a_client_certificate_stands_for_a_user(
    tmp_path: Path, make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    settings = make_settings(
        **written(tmp_path, issue("localhost", AUTHORITY)),
        grpc_tls_client_auth_required=True,
        grpc_tls_client_users="shop.internal=certified,*",
    )
    port = int((await make_server(settings)).address.rpartition(":")[2])
    boundary = settings.boundaries[0].name
    save = pb.SaveEventsRequest(boundary=boundary, events=[pb.EventToSave(event_id="c", event_type="A", data="{}")])
    read = pb.GetEventsRequest(boundary=boundary, count=1)
    async with connected(port, issue("someone", AUTHORITY)) as stranger:
        for username, role in (("certified", "USER"), ("reports", "READER"), ("localhost", "READER")):
            user = admin_pb2.CreateUserRequest(name="N", username=username, password="secret1", roles=[role])
            await stranger.admin.CreateUser(user, metadata=ADMIN)
        assert await refusal(stranger.events.Ping(pb.PingRequest())) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "missing authorization header",
        )
    async with connected(port, issue("", AUTHORITY)) as nameless:
        # users are called like common names, never like an alternative one
        assert (await refusal(nameless.events.GetEvents(read)))[0] is grpc.StatusCode.UNAUTHENTICATED
    async with connected(port, issue("shop.internal", AUTHORITY)) as shop:
        call = shop.events.SaveEvents(save)
        await call
        assert "x-auth-token" not in dict(await call.initial_metadata())
        # what is sent counts before the certificate
        assert (await refusal(shop.events.Ping(pb.PingRequest(), metadata=basic("admin", "wrong"))))[1] == (
            "invalid credentials"
        )
        await shop.admin.ListUsers(admin_pb2.ListUsersRequest(), metadata=ADMIN)
    async with connected(port, issue("reports", AUTHORITY)) as reports:
        await reports.events.GetEvents(read)
        assert (await refusal(reports.events.SaveEvents(save)))[0] is grpc.StatusCode.PERMISSION_DENIED
        stream = reports.events.CatchUpSubscribeToEvents(
            pb.CatchUpSubscribeToEventStoreRequest(boundary=boundary, subscriber_name="reports")
        )
        await stream.read()
        users = (await reports.admin.ListUsers(admin_pb2.ListUsersRequest(), metadata=ADMIN)).users
        user_id = next(user.user_id for user in users if user.username == "reports")
        await reports.admin.DeleteUser(admin_pb2.DeleteUserRequest(user_id=user_id), metadata=ADMIN)
        assert (await refusal(stream.read()))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await refusal(reports.events.GetEvents(read)))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_certificates_stand_for_nobody_unless_it_is_said(
    tmp_path: Path, make_settings: Callable[..., Settings], make_server: Callable[..., Awaitable[Connection]]
) -> None:
    files = written(tmp_path, issue("localhost", AUTHORITY))
    port = int(
        (await make_server(make_settings(**files, grpc_tls_client_auth_required=True))).address.rpartition(":")[2]
    )
    async with connected(port, issue("admin", AUTHORITY)) as client:
        assert (await refusal(client.events.Ping(pb.PingRequest())))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_users_of_certificates_without_certificates_are_a_mistake() -> None:
    with pytest.raises(TransportError, match="ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED"):
        async with bare(grpc_tls_client_users="a=b"):
            pass
    with pytest.raises(ValueError, match="no name=user pair"):
        Settings(grpc_tls_client_users="a=b,orders")  # type: ignore[arg-type]
