"""Secrets of a cluster: those that it makes, and what it reads from those that people make."""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence

from ..certificates import Issued, check_authorities, check_pair, end_of, is_due, issue, make_authority
from ..kube import Kube, Object, Ref
from ..resources import nats, postgres
from ..resources.cluster import Cluster, nats_secret_of
from ..resources.connection import connection
from . import Blocked

#: 192 random bits, of characters that need no quoting anywhere.
_BYTES = 24
_UNITS = {"h": 3600, "m": 60, "s": 1}
#: How long before its end an authority gets a successor, which is trusted from then on; and how long before its end the
#: successor signs in its place. Clients have half a year to read the new one; the old one stays trusted until its end.
_SUCCESSOR, _SUCCEEDED = datetime.timedelta(days=365 * 5), datetime.timedelta(days=365 * 5 - 183)
#: Keys of the authority's Secret: of itself, and of its successor while there is one.
_PAIR, _NEXT = ("tls.crt", "tls.key"), ("next.crt", "next.key")
_NOBODY = Issued(b"", b"")
#: Reasons of an administrator's Secret that is there, and with which no server shall start.
REFUSED_ADMIN = frozenset({"DefaultPassword", "BadPassword", "BadUsername"})


class Secrets:
    """Reads and makes the Secrets of one cluster."""

    def __init__(self, kube: Kube, cluster: Cluster, now: datetime.datetime) -> None:
        self._kube, self._cluster, self._now = kube, cluster, now
        self._key = b""

    async def read(self, name: str) -> dict[str, bytes] | None:
        """The contents of a Secret, None when there is none."""
        found = await self._kube.get(Ref("v1", "Secret", self._cluster.namespace, name))
        if found is None:
            return None
        try:
            return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
        except binascii.Error:
            return {}

    async def need(self, name: str, keys: Sequence[str], field: str) -> dict[str, bytes]:
        """The contents of a Secret that a person makes. Raises Blocked naming what is missing."""
        found = await self.read(name)
        where = f"Secret {self._cluster.namespace}/{name}"
        if found is None:
            raise Blocked("SecretNotFound", f"{where}, which {field} names, does not exist: create it", retry=10.0)
        for key in keys:
            if not found.get(key):
                there = ", ".join(sorted(found)) or "none"
                raise Blocked("UnknownSecretKey", f"{where} has no key {key!r} (it has {there}): add it", retry=10.0)
        return found

    async def nats(self) -> tuple[Object, dict[str, str]]:
        """The Secret of the NATS servers, and its passwords; those that are there stay. To be called first."""
        there = await self.read(self._cluster.nats_secret) or {}
        passwords = {key: there.get(key, b"").decode(errors="replace") or _password() for key in nats.PASSWORDS}
        self._key = passwords[nats.ROUTE_PASSWORD].encode()
        return nats.auth_secret(self._cluster, passwords), passwords

    async def postgres(self) -> tuple[Object, str]:
        """The Secret of the embedded PostgreSQL, and the fingerprint of its password."""
        there = await self.read(self._cluster.postgres) or {}
        password = there.get("password", b"").decode(errors="replace") or _password()
        return postgres.secret(self._cluster, password), self._fingerprint(password.encode())

    def _fingerprint(self, content: bytes) -> str:
        """Keyed with a generated password, so that whoever reads a pod's annotation cannot guess at the content."""
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()[:16]

    async def admin(self) -> Object | None:
        """The administrator's Secret, None when a person makes it. Raises Blocked when that one is of no use."""
        reference = self._cluster.spec.admin.secret_ref
        if reference is None:
            there = await self.read(self._cluster.admin_secret) or {}
            data = {"username": there.get("username") or b"admin", "password": there.get("password") or b""}
            data["password"] = data["password"] or _password().encode()
            self._check_admin(self._cluster.admin_secret, data["username"], data["password"])
            return {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": self._cluster.metadata(self._cluster.admin_secret),
                "type": "Opaque",
                "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
            }
        keys = [reference.username_key, reference.password_key]
        there = await self.need(reference.name, keys, "spec.admin.secretRef")
        self._check_admin(reference.name, *(there[key] for key in keys))
        return None

    def _check_admin(self, name: str, user: bytes, secret: bytes) -> None:
        username, password = user.decode(errors="replace"), secret.decode(errors="replace")
        where = f"Secret {self._cluster.namespace}/{name}"
        if password == "changeit":  # noqa: S105 - what must not be
            raise Blocked("DefaultPassword", f"{where}: everybody knows the password: choose another one", retry=10.0)
        if len(password) < 6:
            raise Blocked("BadPassword", f"{where}: the password needs 6 characters at least", retry=10.0)
        if len(username) < 3 or ":" in username:
            raise Blocked("BadUsername", f"{where}: the user name needs 3 characters at least and no colon", retry=10.0)

    async def digests(self, passwords: Mapping[str, str]) -> dict[str, str]:
        """Fingerprints of what servers read from Secrets at their start."""
        spec = self._cluster.spec
        credentials = connection(self._cluster)
        wanted = {"postgres": (credentials.secret, sorted({key for _, key in credentials.from_secret.values()}))}
        reference = spec.admin.secret_ref
        names = (reference.username_key, reference.password_key) if reference else ("username", "password")
        wanted["admin"] = (self._cluster.admin_secret, list(names))
        if credentials.ca is not None:
            wanted["postgres-ca"] = (credentials.ca.name, [credentials.ca.key])
        digests = {"nats": hashlib.sha256(repr(sorted(passwords.items())).encode()).hexdigest()[:16]}
        for what, (name, keys) in wanted.items():
            there = await self.read(name) or {}
            content = b"\0".join(there.get(one, b"") for one in keys)
            digests[what] = self._fingerprint(content)
        return digests

    # -- TLS -------------------------------------------------------------------------------------------------------

    async def tls(self) -> tuple[list[Object], str]:
        """What to apply for TLS, and the end of the certificate in use ("" while there is none).

        Raises Blocked when the certificate is a person's, or cert-manager's, and not there.
        """
        tls, cluster = self._cluster.spec.tls, self._cluster
        if tls.client_auth is not None:
            ca = tls.client_auth.ca_secret_ref
            there = await self.need(ca.name, [ca.key], "spec.tls.clientAuth.caSecretRef")
            with self._certificates_of(ca.name, f"{ca.key} "):
                check_authorities(there[ca.key])
        if tls.mode == "operator":
            authority, server = await self._issue()
            trust = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": cluster.metadata(f"{cluster.name}-ca"),
                "data": {"ca.crt": base64.b64decode(server["data"]["ca.crt"]).decode()},
            }
            return [authority, server, trust], _end(base64.b64decode(server["data"]["tls.crt"]))
        if tls.mode == "secret":
            there = await self.need(tls.secret_name, ["tls.crt", "tls.key"], "spec.tls.secretName")
            with self._certificates_of(tls.secret_name):
                check_pair(there["tls.crt"], there["tls.key"])
            return [], _end(there["tls.crt"])
        if tls.mode == "certManager":
            there = await self.read(cluster.tls_secret) or {}
            return [self._certificate()], _end(there["tls.crt"]) if there.get("tls.crt") else ""
        return [], ""

    @contextlib.contextmanager
    def _certificates_of(self, secret: str, what: str = "") -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            where = f"Secret {self._cluster.namespace}/{secret}"
            raise Blocked("BadCertificate", f"{where}: {what}{error}: correct it", retry=10.0) from None

    def names(self) -> list[str]:
        """What clients may call the servers."""
        cluster = self._cluster
        service = f"{cluster.name}.{cluster.namespace}"
        return [
            f"{service}.svc",
            f"{service}.svc.{cluster.domain}",
            service,
            cluster.name,
            f"*.{cluster.headless}.{cluster.namespace}.svc.{cluster.domain}",
            f"*.{cluster.headless}.{cluster.namespace}.svc",
            *cluster.spec.tls.dns_names,
        ]

    def _certificate(self) -> Object:
        tls, cluster = self._cluster.spec.tls, self._cluster
        issuer = tls.issuer_ref
        if issuer is None:
            raise Blocked("InvalidSpec", "spec.tls.mode certManager needs spec.tls.issuerRef")
        return {
            "apiVersion": "cert-manager.io/v1",
            "kind": "Certificate",
            "metadata": cluster.metadata(cluster.tls_secret),
            "spec": {
                "secretName": cluster.tls_secret,
                "dnsNames": self.names(),
                "duration": tls.duration,
                "renewBefore": tls.renew_before,
                "usages": ["digital signature", "server auth"],
                "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
                "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
            },
        }

    async def _issue(self) -> tuple[Object, Object]:
        """The authority's Secret and the server's; both as they are while they are good."""
        tls, cluster = self._cluster.spec.tls, self._cluster
        authority_name = f"{cluster.name}-ca"
        there = await self.read(authority_name) or {}
        authority, successor = (Issued(there.get(crt, b""), there.get(key, b"")) for crt, key in (_PAIR, _NEXT))
        name = f"{cluster.namespace}/{cluster.name}"
        if not _lasts(authority, self._now + _SUCCEEDED):
            authority = successor if _lasts(successor, self._now + _SUCCEEDED) else make_authority(name, self._now)
            successor = _NOBODY
        if not _lasts(authority, self._now + _SUCCESSOR) and not _lasts(successor, self._now):
            successor = make_authority(name, self._now)
        known = [authority.certificate, successor.certificate, *_certificates(there.get("ca.crt", b""))]
        trusted = b"".join(dict.fromkeys(pem for pem in known if _is_valid(pem, self._now)))
        server = await self.read(cluster.tls_secret) or {}
        issued = Issued(server.get("tls.crt", b""), server.get("tls.key", b""))
        names, before = self.names(), seconds_of(tls.renew_before)
        if not issued.key or is_due(issued.certificate, authority.certificate, names, before, self._now):
            issued = issue(authority, names, seconds_of(tls.duration), self._now)
        return (
            self._tls_secret(authority_name, authority, trusted, successor),
            self._tls_secret(cluster.tls_secret, issued, trusted),
        )

    def _tls_secret(self, name: str, issued: Issued, trusted: bytes, successor: Issued = _NOBODY) -> Object:
        data = {"tls.crt": issued.certificate, "tls.key": issued.key, "ca.crt": trusted}
        if successor.key:
            data |= dict(zip(_NEXT, (successor.certificate, successor.key), strict=True))
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": self._cluster.metadata(name),
            "type": "kubernetes.io/tls",
            "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
        }


async def sealing_key(kube: Kube, namespace: str, name: str) -> bytes:
    """What the memory of a cluster is sealed with (``applied``): a generated password; b"" while there is none."""
    found = await kube.get(Ref("v1", "Secret", namespace, nats_secret_of(name)))
    try:
        return base64.b64decode(((found or {}).get("data") or {}).get(nats.ROUTE_PASSWORD) or "")
    except binascii.Error:
        return b""


def seconds_of(duration: str) -> datetime.timedelta:
    """A duration such as 720h, as cert-manager writes it."""
    return datetime.timedelta(seconds=sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([hms])", duration)))


def _password() -> str:
    return secrets.token_urlsafe(_BYTES)


def _lasts(issued: Issued, until: datetime.datetime) -> bool:
    return bool(issued.key) and _is_valid(issued.certificate, until)


def _is_valid(certificate: bytes, until: datetime.datetime) -> bool:
    try:
        return end_of(certificate) > until
    except ValueError:
        return False


def _certificates(bundle: bytes) -> list[bytes]:
    return re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", bundle, re.DOTALL)


def _end(certificate: bytes) -> str:
    try:
        return end_of(certificate).strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return ""
