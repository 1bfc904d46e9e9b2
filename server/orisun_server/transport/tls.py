"""TLS and mutual TLS from files, read again when they change so that certificates rotate without a restart."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import structlog

from ..errors import OrisunError
from ..setting_types import Mistake

_CERT, _KEY, _CA = "ORISUN_GRPC_TLS_CERT_FILE", "ORISUN_GRPC_TLS_KEY_FILE", "ORISUN_GRPC_TLS_CA_FILE"
_log = structlog.get_logger(__name__)


class TlsError(OrisunError):
    """The TLS files cannot be used."""


class TlsFiles(NamedTuple):
    """Paths of PEM files; ``ca`` None means that clients show no certificate."""

    cert: str
    key: str
    ca: str | None


class Certificates:
    """The certificates of the files, for grpcio's server credentials."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError that names the variable whose file is missing, unreadable or does not fit."""
        self._files = files
        self._stamps = self._stat()
        self._initial = _load(files)

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            self._changed,  # type: ignore[arg-type]  # grpcio documents None for "unchanged", its stubs do not
            require_client_authentication=self._files.ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The configuration of files that changed since the last look, None to keep the one in use.

        grpcio calls it in a thread of its own for each handshake.
        """
        try:
            stamps = self._stat()
            if stamps == self._stamps:
                return None
            # remembered only if it can be used: a rotation in progress is looked at again at the next handshake
            configuration = _load(self._files)
            self._stamps = stamps
        except (OSError, TlsError) as problem:
            _log.warning("changed TLS files cannot be used; keeping the ones in use", problem=str(problem))
            return None
        _log.info("TLS files were loaded again")
        return configuration

    def _stat(self) -> tuple[tuple[int, int, int], ...]:
        stamps = []
        for path in filter(None, self._files):
            try:
                status = Path(path).stat()
            except OSError:
                stamps.append((0, 0, 0))  # _load tells which
                continue
            stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(stamps)


def mistakes(files: TlsFiles) -> Iterator[Mistake]:
    """What keeps the files from being used: missing, unreadable, no certificates, or not fitting each other."""
    unreadable = dict(_unreadable(files))
    yield from unreadable.items()
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not {_CERT, _KEY} & unreadable.keys():
        try:
            trial.load_cert_chain(files.cert, files.key, password=_no_password)
        except ssl.SSLError as problem:
            yield (
                _CERT,
                f'"{files.cert}" and {_KEY}="{files.key}" are no PEM certificate and its unencrypted private key: '
                f"{getattr(problem, 'reason', None) or problem}",
            )
    if files.ca is not None and _CA not in unreadable:
        try:
            # bundles have comments in any language
            trial.load_verify_locations(cadata=Path(files.ca).read_bytes().decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError) as problem:
            yield _CA, f'"{files.ca}" holds no PEM certificates: {problem}'


def _unreadable(files: TlsFiles) -> Iterator[Mistake]:
    for variable, path in zip((_CERT, _KEY, _CA), files, strict=True):
        try:
            if path is not None:
                Path(path).read_bytes()
        except OSError as problem:
            yield variable, f'"{path}" cannot be read: {problem.strerror}'


def _load(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    for variable, text in mistakes(files):
        raise TlsError(f"{variable}: {text}")
    cert, key = Path(files.cert).read_bytes(), Path(files.key).read_bytes()
    roots = Path(files.ca).read_bytes() if files.ca is not None else None
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=roots)


def _no_password() -> str:
    raise ssl.SSLError("the private key is encrypted")
