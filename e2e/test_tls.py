"""TLS by a Secret and by the operator's own authority; new certificates without a restart."""

from __future__ import annotations

import asyncio
import base64
import ssl
from pathlib import Path

import pytest

from e2e.access import Access
from e2e.kubernetes import Kubernetes, run, until
from e2e.release import ROOT, Release
from e2e.stores import EMBEDDED, Namespace, Servers, boundary, cluster


async def shown_certificate(address: str, name: str, authority: str) -> str:
    """Serial number of the certificate that a server shows, once it is checked against the authority and the name."""
    host, port = address.rsplit(":", 1)
    context = ssl.create_default_context(cadata=authority)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
    shown = writer.get_extra_info("peercert")
    writer.close()
    return str(shown["serialNumber"])


async def _secret(kubernetes: Kubernetes, namespace: str, directory: Path, name: str) -> str:
    """A Secret of a new certificate; the answer is its authority, PEM."""
    await run(str(ROOT / "scripts" / "make_certificates.sh"), str(directory), name)
    files = ("tls.crt=server.crt", "tls.key=server.key", "ca.crt=ca.crt")
    arguments = [f"--from-file={one.split('=')[0]}={directory / one.split('=')[1]}" for one in files]
    text = await kubernetes.kubectl(
        "create", "secret", "generic", "mine", "-n", namespace, *arguments, "--dry-run=client", "-o", "yaml"
    )
    await kubernetes.kubectl("apply", "-f", "-", stdin=text)
    return (directory / "ca.crt").read_text()


async def test_a_new_certificate_needs_no_restart(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access, tmp_path: Path
) -> None:
    space, name = namespace.name, f"store.{namespace.name}.svc"
    authority = await _secret(kubernetes, space, tmp_path / "one", name)
    await namespace.apply(cluster(EMBEDDED, replicas=1, tls={"mode": "secret", "secretName": "mine"}))
    store = Servers(namespace, access, "store")
    await store.ready()
    async with access.service(space, "store") as address:
        first = await shown_certificate(address, name, authority)
        pods = {pod["metadata"]["uid"] for pod in await store.pods()}
        authority = await _secret(kubernetes, space, tmp_path / "two", name)

        async def renewed() -> bool:
            try:
                return await shown_certificate(address, name, authority) != first
            except ssl.SSLError:
                return False

        await until(renewed, 180, "the new certificate", interval=1)
    assert {pod["metadata"]["uid"] for pod in await store.pods()} == pods


@pytest.mark.parametrize("mode", ["operator"])
async def test_an_authority_of_its_own(
    kubernetes: Kubernetes, operator: Release, namespace: Namespace, access: Access, mode: str
) -> None:
    await namespace.apply(cluster(EMBEDDED, replicas=1, tls={"mode": mode}), boundary("orders"))
    store = Servers(namespace, access, "store")
    await kubernetes.ready(namespace.name, "orisun/store", "bnd/orders", timeout=240)
    secret = await kubernetes.must("secret", "store-tls", namespace.name)
    authority = base64.b64decode(secret["data"]["ca.crt"]).decode()
    async with access.service(namespace.name, store.name) as address:
        assert await shown_certificate(address, f"store.{namespace.name}.svc", authority)
        assert await shown_certificate(address, f"store-0.store-headless.{namespace.name}.svc.cluster.local", authority)
