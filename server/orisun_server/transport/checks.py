"""What is wrong with the ORISUN_GRPC_* settings, beyond each value alone."""

from __future__ import annotations

from collections.abc import Iterator

from ..setting_types import Mistake
from ..settings import Settings
from . import native, tls


def mistakes(settings: Settings) -> Iterator[Mistake]:
    """Contradictions, and files of certificates that cannot be used."""
    yield from contradictions(settings)
    if settings.grpc_tls_enabled:
        yield from tls.mistakes(tls_files(settings))


def contradictions(settings: Settings) -> Iterator[Mistake]:
    """Settings that do nothing or cannot be, because of another one."""
    if settings.grpc_tls_client_auth_required and not settings.grpc_tls_enabled:
        yield "ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED", '"true" does nothing without ORISUN_GRPC_TLS_ENABLED=true'
    if settings.grpc_tls_client_users and not settings.grpc_tls_client_auth_required:
        yield (
            "ORISUN_GRPC_TLS_CLIENT_USERS",
            "does nothing without ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED=true: no certificate is checked",
        )
    if settings.grpc_transport == "native":
        if settings.grpc_tls_enabled:
            yield "ORISUN_GRPC_TRANSPORT", '"native" has no TLS; unset it, or unset ORISUN_GRPC_TLS_ENABLED'
        if not native.is_installed():
            yield "ORISUN_GRPC_TRANSPORT", '"native" needs the package pygrpc-native (orisun[native])'


def tls_files(settings: Settings) -> tls.TlsFiles:
    """Where the certificates are; the authority only where clients have to show one."""
    authority = settings.grpc_tls_ca_file if settings.grpc_tls_client_auth_required else None
    return tls.TlsFiles(
        str(settings.grpc_tls_cert_file), str(settings.grpc_tls_key_file), str(authority) if authority else None
    )
