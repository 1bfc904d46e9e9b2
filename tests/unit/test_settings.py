"""Settings from the environment: the seeds' examples, defaults, mistakes, origins, and what is never shown."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pydantic import SecretStr, ValidationError

from orisun_server.addresses import mask_userinfo
from orisun_server.checks import of_postgres
from orisun_server.cli import config, migrate, serve
from orisun_server.environment import SettingsError, effective, load, reference, variables
from orisun_server.setting_types import BoundarySetting, format_duration, parse_duration
from orisun_server.settings import Settings
from tests.harness import environment

ROOT = Path(__file__).parents[2]


def pairs(environ: dict[str, str]) -> list[tuple[str, str]]:
    return [(boundary.name, boundary.schema) for boundary in load(environ).settings.boundaries]


def mistakes(environ: dict[str, str]) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        load(environ)
    return dict(caught.value.mistakes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("1800s", 1800),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("0", 0),
        ("2us", 2e-6),
        ("0s", 0),
    ],
)
def test_durations_are_written_as_go_writes_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["5", "m", "-5m", "5 m", "5x", "", "1h 30m", "5mm", "inf", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_the_defaults_are_the_seeds() -> None:
    settings = load({}).settings
    assert settings.boundaries == (
        BoundarySetting("orisun_test_1", "boundary1", "public"),
        BoundarySetting("orisun_test_2", "boundary2", "test2"),
        BoundarySetting("orisun_admin", "boundary3", "admin"),
    )
    assert settings.admin_schema == "admin"
    shown = effective(settings)
    expected = {
        "ORISUN_GRPC_PORT": "5005",
        "ORISUN_GRPC_ENABLE_REFLECTION": "true",
        "ORISUN_GRPC_TLS_ENABLED": "false",
        "ORISUN_GRPC_TLS_CERT_FILE": "/etc/orisun/tls/server.crt",
        "ORISUN_ADMIN_PORT": "8991",
        "ORISUN_ADMIN_USERNAME": "admin",
        "ORISUN_PG_PORT": "5432",
        "ORISUN_PG_LISTEN_ENABLED": "true",
        "ORISUN_PG_WRITE_MAX_OPEN_CONNS": "25",
        "ORISUN_PG_WRITE_MAX_IDLE_CONNS": "10",
        "ORISUN_PG_READ_MAX_OPEN_CONNS": "50",
        "ORISUN_PG_READ_MAX_IDLE_CONNS": "25",
        "ORISUN_PG_ADMIN_MAX_OPEN_CONNS": "5",
        "ORISUN_PG_ADMIN_MAX_IDLE_CONNS": "2",
        "ORISUN_PG_ADMIN_CONN_MAX_IDLE_TIME": "5m",
        "ORISUN_PG_ADMIN_CONN_MAX_LIFETIME": "30m",
        "ORISUN_NATS_SERVER_NAME": "orisun-nats-2",
        "ORISUN_NATS_PORT": "4224",
        "ORISUN_NATS_MAX_PAYLOAD": "1048576",
        "ORISUN_NATS_STORE_DIR": "data/orisun/nats",
        "ORISUN_NATS_EVENT_STREAM_MAX_BYTES": "536870912",
        "ORISUN_NATS_EVENT_STREAM_MAX_MSGS": "-1",
        "ORISUN_NATS_EVENT_STREAM_MAX_AGE": "5m",
        "ORISUN_NATS_CLUSTER_ENABLED": "false",
        "ORISUN_NATS_CLUSTER_NAME": "orisun-nats-cluster",
        "ORISUN_NATS_CLUSTER_HOST": "0.0.0.0",
        "ORISUN_NATS_CLUSTER_PORT": "6222",
        "ORISUN_NATS_CLUSTER_ROUTES": "nats://0.0.0.0:6223,nats://0.0.0.0:6224",
        "ORISUN_NATS_CLUSTER_USERNAME": "nats",
        "ORISUN_NATS_CLUSTER_TIMEOUT": "30m",
        "ORISUN_POLLING_PUBLISHER_BATCH_SIZE": "1000",
        "ORISUN_LOGGING_LEVEL": "INFO",
        "ORISUN_OTEL_ENABLED": "true",
        "ORISUN_OTEL_ENDPOINT": "localhost:4317",
        "ORISUN_OTEL_SERVICE_NAME": "orisun",
        "ORISUN_PPROF_ENABLED": "false",
        "ORISUN_PPROF_PORT": "6060",
    }
    assert {name: shown[name] for name in expected} == expected
    assert settings.admin_password == SecretStr("changeit")
    assert settings.nats_cluster_password == SecretStr("password@1")


DOCUMENTS = ROOT.parent / "shared/seeds"
#: A mistake of the oldest document, and what the newest says of variables in general.
_NOT_MEANT = {"ORISUN_DB_SCHEMAS", "ORISUN_"}


@pytest.mark.parametrize("document", ["001", "000", "002"])
def test_every_variable_of_the_documents_is_known_with_its_default(document: str) -> None:
    """The newer ones win; the oldest is superseded in its defaults."""
    if not DOCUMENTS.exists():
        pytest.skip("NOT TESTED: the documents are not beside the project; their defaults are tested all the same")
    (path,) = DOCUMENTS.glob(f"{document}_*")
    text = path.read_text()
    assert set(re.findall(r"\bORISUN_[A-Z_]*", text)) - _NOT_MEANT <= variables().keys()
    # a table's row on one line; in the newest, whose markup is lost, a cell on each
    cells = dict(re.findall(r"^\| `(ORISUN_\w+)` \|[^|\n]*\| `?([^|\n]*?)`? \|", text, re.M))
    for table in re.findall(r"^\| Variable \|\nDefault \|\n((?:Description \|\n)?(?:.* \|\n)+)", text, re.M):
        cells |= dict(re.findall(r"^(ORISUN_\w+) \|\n(.*) \|$", table, re.M))
    shown = effective(Settings()) | {"ORISUN_ADMIN_PASSWORD": "changeit", "ORISUN_PG_PASSWORD": "postgres"}
    shown |= {"ORISUN_NATS_CLUSTER_PASSWORD": "password@1"}
    differ = {name for name, value in cells.items() if _plain(shown[name]) != _plain(value)}
    assert (
        differ
        == {
            "001": {"ORISUN_PG_PASSWORD", "ORISUN_PG_NAME", "ORISUN_PG_SCHEMAS", "ORISUN_GRPC_PORT", "ORISUN_NATS_PORT"}
            | {f"ORISUN_NATS_{name}" for name in ("STORE_DIR", "CLUSTER_HOST", "CLUSTER_TIMEOUT", "CLUSTER_ROUTES")},
            "000": {"ORISUN_OTEL_ENABLED"},
            "002": set(),
        }[document]
    )
    assert len(cells) > 15


def _plain(value: str) -> str:
    value = value.removeprefix("./")
    return str(parse_duration(value)) if re.fullmatch(r"\d+[smh]", value) else value


BOTH = '[{"name":"orisun_test_1","description":"test boundary"},{"name":"orisun_admin","description":"admin boundary"}]'
POSTGRES = {
    "ORISUN_PG_HOST": "localhost",
    "ORISUN_PG_PORT": "5432",
    "ORISUN_PG_USER": "postgres",
    "ORISUN_PG_PASSWORD": "your_password",
    "ORISUN_PG_NAME": "your_database",
}
TWO = [("orisun_test_1", "public"), ("orisun_admin", "admin")]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param(
            {"ORISUN_PG_SCHEMAS": "orisun_test_1:public,orisun_admin:admin", "ORISUN_BOUNDARIES": BOTH,
             "ORISUN_ADMIN_BOUNDARY": "orisun_admin"}, TWO, id="compose-of-the-second-newest"),
        pytest.param(
            {"ORISUN_ADMIN_USERNAME": "admin", "ORISUN_ADMIN_PASSWORD": "changeit"},
            [("orisun_test_1", "public"), ("orisun_test_2", "test2"), ("orisun_admin", "admin")],
            id="compose-of-the-newest"),
        pytest.param({"ORISUN_PG_SCHEMAS": "orisun_test_1:public,orisun_admin:admin"}, TWO, id="binary-schemas-alone"),
        pytest.param(
            {"ORISUN_ADMIN_BOUNDARY:orisun_admin": "", "ORISUN_PG_SCHEMAS": "users:test2,orisun_admin:admin"},
            [("users", "test2"), ("orisun_admin", "admin")], id="oldest-with-its-colon"),
        pytest.param(
            {"ORISUN_PG_SCHEMAS": "public", "ORISUN_GRPC_PORT": "5005", "ORISUN_NATS_PORT": "4222"},
            [("public", "public"), ("orisun_admin", "admin")], id="oldest-standalone"),
        pytest.param({"ORISUN_PG_SCHEMAS": "test:public"}, [("test", "public"), ("orisun_admin", "admin")], id="build"),
        pytest.param(
            {"ORISUN_PG_SCHEMAS": "orders:public,admin:admin", "ORISUN_ADMIN_BOUNDARY": "admin",
             "ORISUN_BOUNDARIES":
                 '[{"name":"orders","description":"orders"},{"name":"admin","description":"admin"}]'},
            [("orders", "public"), ("admin", "admin")], id="newest-standalone"),
        pytest.param(
            {"ORISUN_PG_SCHEMAS": "orders:public,payments:public,admin:admin", "ORISUN_ADMIN_BOUNDARY": "admin"},
            [("orders", "public"), ("payments", "public"), ("admin", "admin")], id="several-in-one-schema"),
    ],
)  # fmt: skip
def test_the_quick_starts_of_the_seeds(environ: dict[str, str], expected: list[tuple[str, str]]) -> None:
    loaded = load({**POSTGRES, **environ})
    assert [(b.name, b.schema) for b in loaded.settings.boundaries] == expected
    assert not loaded.settings.embeds_postgres
    assert loaded.settings.embeds_nats


def test_boundaries_and_schemas_follow_from_each_other() -> None:
    assert pairs({"ORISUN_BOUNDARIES": '[{"name":"orders"},{"name":"orisun_test_2"}]'}) == [
        ("orders", "orders"), ("orisun_test_2", "test2"), ("orisun_admin", "admin"),
    ]  # fmt: skip
    assert pairs({"ORISUN_PG_SCHEMAS": " a , b:s ,", "ORISUN_ADMIN_BOUNDARY": "ops"}) == [
        ("a", "a"), ("b", "s"), ("ops", "ops"),
    ]  # fmt: skip
    assert pairs({"ORISUN_ADMIN_BOUNDARY": "ops"})[-1] == ("ops", "ops")
    # an admin boundary that only one of them names is no disagreement
    assert pairs({"ORISUN_BOUNDARIES": '[{"name":"a"}]', "ORISUN_PG_SCHEMAS": "a:s,orisun_admin:x"}) == [
        ("a", "s"), ("orisun_admin", "x"),
    ]  # fmt: skip


def test_both_set_must_agree() -> None:
    found = mistakes({"ORISUN_BOUNDARIES": '[{"name":"a"},{"name":"b"}]', "ORISUN_PG_SCHEMAS": "a:s,c:s"})
    assert "b" in found["ORISUN_PG_SCHEMAS"]
    assert "c" in found["ORISUN_BOUNDARIES"]


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ORISUN_BOUNDARIES", "[", "not JSON"),
        ("ORISUN_BOUNDARIES", '{"name":"a"}', "list of objects"),
        ("ORISUN_BOUNDARIES", '["a"]', "list of objects"),
        ("ORISUN_BOUNDARIES", '[{"name":"1a"}]', '"1a" cannot name a boundary'),
        ("ORISUN_BOUNDARIES", '[{"name":"a"},{"name":"a"}]', "twice"),
        ("ORISUN_BOUNDARIES", '[{"name":"a","schema":"x"}]', 'unknown key "schema"'),
        ("ORISUN_BOUNDARIES", '[{"name":"a","description":7}]', "description must be a text"),
        ("ORISUN_PG_SCHEMAS", "a b", '"a b" in "a b" cannot name a boundary'),
        ("ORISUN_PG_SCHEMAS", "a:pg_catalog", '"pg_catalog" in "a:pg_catalog" cannot name a schema'),
        ("ORISUN_PG_SCHEMAS", "a:", '"" in "a:" cannot name a schema'),
        ("ORISUN_PG_SCHEMAS", "a:x,a:y", "twice"),
        ("ORISUN_PG_SCHEMAS", ",", "names no boundary"),
        ("ORISUN_ADMIN_BOUNDARY", "ops-admin", '"ops-admin" cannot name a boundary'),
        ("ORISUN_PG_PORT", "x", '"x": input should be a valid integer'),
        ("ORISUN_GRPC_PORT", "65536", "less than or equal to 65535"),
        ("ORISUN_NATS_EVENT_STREAM_MAX_AGE", "5", "with its unit"),
        ("ORISUN_GRPC_TRANSPORT", "http", "'auto', 'grpcio' or 'native'"),
        ("ORISUN_PG_LISTEN_ENABLED", "maybe", "boolean"),
        ("ORISUN_LOGGING_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARN' or 'ERROR'"),
        ("ORISUN_NATS_MAX_PAYLOAD", "100000000", "67108864"),
        # a pointer to an event alone takes 4 KiB
        ("ORISUN_NATS_MAX_PAYLOAD", "8191", "greater than or equal to 8192"),
        ("ORISUN_NATS_SERVER_NAME", "my nats", "should match pattern"),
        ("ORISUN_NATS_URL", "nats://h:notaport", "address 1 has no valid port"),
        ("ORISUN_NATS_URL", "a:4222, nats://h:70000", "address 2 has no valid port"),
        ("ORISUN_NATS_URL", "http://h:4222", "address 1 does not begin with nats:// or tls://"),
        ("ORISUN_NATS_URL", ",", "names no server"),
        ("ORISUN_NATS_URL", "nats://:4222", "address 1 has no valid host"),
        ("ORISUN_NATS_URL", "nats://[h:4222", "address 1 has no valid host"),
        ("ORISUN_NATS_URL", "nats://user:hush#hush@h:4222", "address 1 has more after its host and port"),
        (
            "ORISUN_NATS_CLUSTER_ROUTES",
            "nats://b:6222,nats://a:xx",
            '"nats://b:6222,nats://a:xx": address 2 has no valid',
        ),
        ("ORISUN_NATS_CLUSTER_ROUTES", "nats://user:hush@a", "address 1 has no port"),
        ("ORISUN_NATS_CLUSTER_ROUTES", "nats://user:hu sh@a:6222", "address 1 has a blank"),
        ("ORISUN_NATS_CLUSTER_ROUTES", "nats://user:hush,hush@a:6222", "address 1 has no valid port"),
        ("ORISUN_OTEL_ENDPOINT", "collector:notaport", '"collector:notaport": address 1 has no valid port'),
        ("ORISUN_OTEL_ENDPOINT", "tcp://user:hush@collector:4317", "does not begin with http:// or https://"),
        ("ORISUN_ADMIN_PASSWORD", "hush", "a password has 6 to 1020 characters"),
        ("ORISUN_ADMIN_PASSWORD", "hush" * 256, "a password has 6 to 1020 characters"),
        ("ORISUN_PG_READ_MAX_IDLE_CONNS", "51", '"51" is more than ORISUN_PG_READ_MAX_OPEN_CONNS="50"'),
    ],
)
def test_a_mistake_names_its_variable_and_what_is_wrong(variable: str, value: str, says: str) -> None:
    found = mistakes({variable: value})
    assert says in found[variable]
    assert len(found) == 1
    assert "hush" not in str(found)


def test_fewer_connections_than_are_kept_idle_by_default_are_no_mistake() -> None:
    assert load({"ORISUN_PG_READ_MAX_OPEN_CONNS": "3"}).settings.pg_read_max_open_conns == 3


TLS = {
    f"ORISUN_GRPC_TLS_{name}": f"/nowhere/{name}" if name.endswith("FILE") else "true"
    for name in ("ENABLED", "CLIENT_AUTH_REQUIRED", "CERT_FILE", "KEY_FILE", "CA_FILE")
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({**TLS, "ORISUN_GRPC_TRANSPORT": "native", "ORISUN_PG_PORT": "x", "ORISUN_ADMIN_PASSWORD_ENFORCED": "true"}, {
            "ORISUN_PG_PORT": '"x": input should be a valid integer',
            "ORISUN_GRPC_TRANSPORT": '"native" has no TLS',
            "ORISUN_GRPC_TLS_CERT_FILE": '"/nowhere/CERT_FILE" cannot be read: No such file',
            "ORISUN_GRPC_TLS_KEY_FILE": '"/nowhere/KEY_FILE" cannot be read: No such file',
            "ORISUN_GRPC_TLS_CA_FILE": '"/nowhere/CA_FILE" cannot be read: No such file',
            "ORISUN_ADMIN_PASSWORD": "is the default that everybody knows",
        }),
        ({"ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED": "true", "ORISUN_ADMIN_PASSWORD_ENFORCED": "true",
          "ORISUN_ADMIN_PASSWORD": "short"}, {
            "ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED": "does nothing without ORISUN_GRPC_TLS_ENABLED=true",
            "ORISUN_ADMIN_PASSWORD": "a password has 6",
        }),
        ({"ORISUN_GRPC_TLS_CLIENT_USERS": "shop=shop", "ORISUN_PG_PORT": "x", "ORISUN_PG_SSLMODE": "verify-full",
          "ORISUN_PG_SSLROOTCERT": "/nowhere/ca.crt"}, {
            "ORISUN_GRPC_TLS_CLIENT_USERS": "does nothing without ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED=true",
            "ORISUN_PG_PORT": '"x": input should be a valid integer',
            "ORISUN_PG_SSLROOTCERT": '"/nowhere/ca.crt" cannot be used: No such file',
        }),
        # what only follows from a value that is refused is not told of
        ({"ORISUN_GRPC_TLS_CLIENT_AUTH_REQUIRED": "true", "ORISUN_GRPC_TLS_ENABLED": "maybe"}, {
            "ORISUN_GRPC_TLS_ENABLED": '"maybe": input should be a valid boolean',
        }),
        ({"ORISUN_PG_HOST": "db", "ORISUN_PG_SSLMODE": "verify-ca"}, {
            "ORISUN_PG_SSLMODE": '"verify-ca" needs ORISUN_PG_SSLROOTCERT',
        }),
        ({"ORISUN_PG_HOST": "db", "ORISUN_PG_SSLMODE": "require", "ORISUN_PG_SSLROOTCERT": "-----BEGIN \u00fc"}, {
            "ORISUN_PG_SSLROOTCERT": "the certificate cannot be used: holds no PEM certificates",
        }),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [config, serve])
def test_what_contradicts_itself_or_cannot_be_read_is_listed_with_the_rest(
    command: click.Command,
    environ: dict[str, str],
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where libpq looks for an authority
    result = CliRunner().invoke(command, env=environ)
    assert result.exit_code == 1
    found = dict(re.findall(r"^  (ORISUN_\w+): (.*)$", result.output, re.MULTILINE))
    assert found.keys() == expected.keys()
    assert result.output.startswith(f"Error: {len(expected)} mistake")
    for variable, says in expected.items():
        assert says in found[variable]


def test_who_migrates_needs_what_concerns_postgresql_alone() -> None:
    environ = {
        **TLS,
        "ORISUN_ADMIN_PASSWORD_ENFORCED": "true",
        "ORISUN_PG_HOST": "db",
        "ORISUN_PG_SSLMODE": "verify-ca",
    }
    environ["ORISUN_PG_SSLROOTCERT"] = "/nowhere/ca.crt"
    result = CliRunner().invoke(migrate, ["status"], env=environ)
    assert result.output.startswith("Error: 1 mistake in the settings:\n  ORISUN_PG_SSLROOTCERT: ")
    # files of nobody's concern: where PostgreSQL is embedded, and where no database is needed
    assert load(environ).settings.pg_host == "db"
    del environ["ORISUN_PG_HOST"]
    assert load(environ, of_postgres).settings.embeds_postgres


def test_all_mistakes_are_listed_at_once_and_secrets_are_not() -> None:
    environ = {
        "ORISUN_PG_PORT": "x",
        "ORISUN_PG_PASSWORD": "hush-hush",
        "ORISUN_BOUNDARIES": "[",
        "ORISUN_ADMIN_BOUNDARY": "1",
        "ORISUN_SHUTDOWN_GRACE": "soon",
        "ORISUN_PG_READ_MAX_OPEN_CONNS": "3",
        "ORISUN_PG_READ_MAX_IDLE_CONNS": "4",
    }
    with pytest.raises(SettingsError, match=r"^5 mistakes in the settings:\n") as caught:
        load(environ)
    assert {variable for variable, _ in caught.value.mistakes} == environ.keys() - {
        "ORISUN_PG_PASSWORD", "ORISUN_PG_READ_MAX_OPEN_CONNS",
    } | {"ORISUN_PG_READ_MAX_IDLE_CONNS"}  # fmt: skip
    assert "hush-hush" not in str(caught.value)


def test_secrets_are_masked_everywhere() -> None:
    environ = {
        "ORISUN_PG_PASSWORD": "hush-1",
        "ORISUN_ADMIN_PASSWORD": "hush-2",
        "ORISUN_NATS_URL": "nats://user:hush-3@nats:4222",
        "ORISUN_NATS_CLUSTER_PASSWORD": "hush-4",
        "ORISUN_NATS_CLUSTER_ROUTES": "nats://user:hush-5@a:6222,user:hush-6@b:6222",
    }
    loaded = load(environ)
    printed = [CliRunner().invoke(config, ["-o", output], env=environ) for output in ("table", "json", "yaml")]
    assert [result.exit_code for result in printed] == [0, 0, 0]
    for text in (repr(loaded), str(effective(loaded.settings)), *(result.output for result in printed)):
        assert not re.search("hush-[1-4]", text)
    assert effective(loaded.settings)["ORISUN_NATS_CLUSTER_ROUTES"] == "nats://***@a:6222,nats://***@b:6222"
    assert not [result for result in printed if "hush" in result.output]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (
            'error parsing route url ["nats-route://nats:hush%401@a:xx"]',
            'error parsing route url ["nats-route://***@a:xx"]',
        ),
        ("nats://u:hush/hush@a:1,nats://u:hush@b:2", "nats://***@a:1,nats://***@b:2"),
        ("https://user:hush@hush@collector:4317/", "https://***@collector:4317/"),
        ("nats://a:4222, app@orders", "nats://a:4222, app@orders"),
    ],
)
def test_credentials_of_addresses_are_masked_in_any_text(text: str, masked: str) -> None:
    assert mask_userinfo(text) == masked


def test_origins() -> None:
    origins = load(
        {"ORISUN_PG_SCHEMAS": "a:s", "ORISUN_PG_PORT": "5433", "ORISUN_NATS_CLUSTER_ENABLED": "true"}
    ).origins
    assert origins["ORISUN_PG_SCHEMAS"] == origins["ORISUN_PG_PORT"] == "environment"
    assert origins["ORISUN_BOUNDARIES"] == origins["ORISUN_GRPC_HOST"] == "derived"
    assert origins["ORISUN_NATS_SERVER_NAME"] == "derived"
    assert origins["ORISUN_PG_HOST"] == "default"
    assert origins.keys() == variables().keys()


def test_what_is_embedded_and_where_it_listens() -> None:
    laptop = load({}).settings
    assert (laptop.embeds_postgres, laptop.embeds_nats, laptop.grpc_host) == (True, True, "127.0.0.1")
    assert laptop.listens_on_loopback
    for variable in ("HOST", "PORT", "USER", "PASSWORD", "NAME"):
        settings = load({f"ORISUN_PG_{variable}": "1"}).settings
        assert (settings.embeds_postgres, settings.embeds_nats, settings.grpc_host) == (False, True, "0.0.0.0")
        assert not settings.listens_on_loopback
    assert not load({"ORISUN_NATS_URL": "nats://x"}).settings.embeds_nats
    assert load({"ORISUN_PG_HOST": "", "ORISUN_PG_PORT": " "}).settings.embeds_postgres


def test_odd_variables_are_named() -> None:
    warnings = load(
        {
            "ORISUN_PG_HOTS": "x",
            "ORISUN_DB_SCHEMAS": "a",
            "GOGC": "200",
            "GOMAXPROCS": "2",
            "ORISUN_ADMIN_BOUNDARY:ops": "",
            "PATH": "/bin",
        }
    ).warnings
    text = "\n".join(warnings)
    assert "ORISUN_PG_HOTS is unknown and ignored; did you mean ORISUN_PG_HOST?" in text
    assert "did you mean ORISUN_PG_SCHEMAS?" in text
    assert "GOGC, GOMAXPROCS" in text
    assert '"ORISUN_ADMIN_BOUNDARY:ops" is taken as ORISUN_ADMIN_BOUNDARY=ops' in text
    assert len(warnings) == 4


def test_variables_that_kubernetes_makes_of_services_are_no_settings() -> None:
    loaded = load(
        {
            "ORISUN_GRPC_PORT": "tcp://10.0.0.7:5005",
            "ORISUN_PORT": "tcp://10.0.0.7:5005",
            "ORISUN_SERVICE_HOST": "10.0.0.7",
            "ORISUN_SERVICE_PORT_GRPC": "5005",
            "ORISUN_NATS_PORT_4222_TCP_ADDR": "10.0.0.8",
        }
    )
    assert loaded.settings.grpc_port == 5005
    assert not loaded.warnings


def test_settings_cannot_be_changed_or_misspelt() -> None:
    with pytest.raises(ValidationError):
        Settings().grpc_port = 1
    with pytest.raises(ValidationError):
        Settings(grpc_prot=1)


def test_a_server_name_in_a_cluster_is_its_own() -> None:
    environ = {"ORISUN_NATS_CLUSTER_ENABLED": "true", "ORISUN_NATS_PORT": "4223"}
    name = load(environ).settings.nats_server_name
    assert name.endswith("-4223")
    assert name != load({**environ, "ORISUN_NATS_PORT": "4224"}).settings.nats_server_name
    assert load({**environ, "ORISUN_NATS_SERVER_NAME": "n1"}).settings.nats_server_name == "n1"
    assert load(environ).settings.stream_replicas == 3
    assert load({}).settings.stream_replicas == 1


def test_another_process_gets_the_same_settings() -> None:
    settings = Settings(
        pg_host="h", pg_password="p", append_max_events=5, node_ttl="250ms", boundaries=[("a", "d", "s")]
    )
    assert load(environment(settings)).settings.model_dump(mode="json") == settings.model_dump(mode="json")
    assert load(environment(Settings())).settings.embeds_postgres


def test_the_reference_lists_every_variable() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text()
    assert reference() in document, "run: make docs/configuration.md"
    names = re.findall(r"^\| `(ORISUN_\w+)`", reference(), re.MULTILINE)
    assert names == list(variables())


def test_users_and_passwords_in_urls_are_not_shown() -> None:
    shown = effective(Settings(otel_endpoint="https://user:hush-hush@collector:4317"))
    assert Settings(otel_endpoint="http://collector:4317/v1/traces").otel_endpoint.endswith("/v1/traces")
    assert shown["ORISUN_OTEL_ENDPOINT"] == "https://***@collector:4317"


def test_proxies_are_addresses_or_networks() -> None:
    assert load({"ORISUN_TRUSTED_PROXIES": "10.0.0.7, fd00::/8"}).settings.trusted_proxies == ("10.0.0.7", "fd00::/8")
    with pytest.raises(SettingsError, match="is no address or network"):
        load({"ORISUN_TRUSTED_PROXIES": "10.0.0.7,proxy.internal"})
