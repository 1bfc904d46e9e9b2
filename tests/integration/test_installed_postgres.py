"""The PostgreSQL releases that are installed on this machine, beside the embedded one that all other tests use.

To run the whole suite on one of them: ORISUN_TEST_PG_BIN=/usr/lib/postgresql/15/bin make test; and on one that is not
installed, from 13 on: scripts/test_on_postgres.sh 18
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from orisun_server.embedded.postgres import EmbeddedPostgres
from orisun_server.settings import Settings
from tests.harness import Connection
from tests.integration.test_pgbouncer import everything

#: Where Debian and its kin have them; those before 13 are not supported.
INSTALLED = [
    binaries
    for binaries in sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin"))
    if int(binaries.parent.name) >= 13 and (binaries / "initdb").exists()
]


@pytest.mark.parametrize("binaries", INSTALLED, ids=lambda path: path.parent.name)
async def test_everything_a_server_does(
    binaries: Path,
    data_dir: Path,
    make_settings: Callable[..., Settings],
    make_server: Callable[..., Awaitable[Connection]],
) -> None:
    postgres = EmbeddedPostgres(data_dir / "postgres", binaries=binaries, configuration={"fsync": "off"})
    address = await postgres.start()
    try:
        settings = make_settings(pg_host=address.host, pg_port=address.port, pg_user=address.user)
        await everything(await make_server(settings), await make_server(settings), settings)
    finally:
        await postgres.stop()
