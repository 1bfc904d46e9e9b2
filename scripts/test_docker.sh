#!/usr/bin/env bash
# Runs the image as Docker users do, and saves and reads events in it: alone, beside a PostgreSQL, over TLS, by
# compose.yaml and compose.tls.yaml.
#
#   test_docker.sh              builds orisun:local first
#   test_docker.sh IMAGE        takes this one
#
# POSTGRES_IMAGE: the PostgreSQL to run beside it (postgres:17.5-alpine3.22); where that is neither here nor can be
# pulled, one is built from Debian's packages, and the output says so. Nothing else is left behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
DOCKER=${DOCKER:-docker}
POSTGRES_IMAGE=${POSTGRES_IMAGE:-postgres:17.5-alpine3.22}
# megabytes that the image may add to its base image
MOST=${MOST:-180}
image=${1:-}
if [ -z "$image" ]; then
  scripts/images.sh "$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"
  image=orisun:$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
  "$DOCKER" tag "$image" orisun:local
fi

name=orisun-test-$$
work=$(mktemp -d)
finish() {
  status=$?
  if [ $status != 0 ]; then
    for one in "$name" "$name-pg" "$name-orisun-1" "$name-postgres-1"; do
      "$DOCKER" logs --tail 20 "$one" 2>&1 | sed "s/^/$one: /" || true
    done
  fi >&2
  if "$DOCKER" compose version >/dev/null 2>&1; then compose down --volumes --timeout 5 >/dev/null 2>&1 || true; fi
  "$DOCKER" rm --force --volumes "$name" "$name-pg" >/dev/null 2>&1 || true
  "$DOCKER" volume rm "$name" >/dev/null 2>&1 || true
  "$DOCKER" network rm "$name" >/dev/null 2>&1 || true
  rm -rf "$work"
  [ $status = 0 ] || echo "FAILED" >&2
  exit $status
}
trap finish EXIT
ok() { echo "ok  $*"; }
fail() { echo "error: $*" >&2; exit 1; }

DOCKER=$DOCKER scripts/image_size.sh "$image" "$MOST"

# what `docker run` gets besides: nothing of the image may be written, and no privilege is needed
hardened=(--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --volume "$name:/var/lib/orisun/data")
run() { "$DOCKER" run --detach --name "$name" "${hardened[@]}" "$@" >/dev/null; }

# as docs/docker.md says, on free ports
compose() {
  ORISUN_IMAGE=$image POSTGRES_IMAGE=$POSTGRES_IMAGE POSTGRES_PORT=0 ORISUN_GRPC_PORT=0 ORISUN_ADMIN_PORT=0 \
    ORISUN_TLS_DIR=$work/tls "$DOCKER" compose --progress quiet --project-name "$name" -f compose.yaml ${TLS:+-f compose.tls.yaml} "$@"
}

# client save ID | client read COUNT: with the client's stubs inside the container; TLS=yes trusts tls/ca.crt
client() {
  "$DOCKER" exec --interactive --env TLS="${TLS:-}" "${container:-$name}" python - "$@" <<'END'
import base64, json, os, sys, time
import grpc
from orisun_api import eventstore_pb2 as pb, eventstore_pb2_grpc

action, argument = sys.argv[1:]
metadata = [("authorization", "Basic " + base64.b64encode(b"admin:changeit").decode())]
if os.environ["TLS"]:
    with open("/etc/orisun/tls/ca.crt", "rb") as file:
        channel = grpc.secure_channel("localhost:5005", grpc.ssl_channel_credentials(file.read()))
else:
    channel = grpc.insecure_channel("localhost:5005")
store = eventstore_pb2_grpc.EventStoreStub(channel)
deadline = time.monotonic() + 60
while True:
    try:
        boundary = "orisun_test_1"
        if action == "save":
            event = pb.EventToSave(event_id=argument, event_type="Tested", data=json.dumps({"id": argument}))
            answer = store.SaveEvents(pb.SaveEventsRequest(boundary=boundary, events=[event]), metadata=metadata, timeout=5)
            assert answer.log_position.commit_position > 0, answer
        else:
            found = store.GetEvents(pb.GetEventsRequest(boundary=boundary, count=100), metadata=metadata, timeout=5).events
            assert len(found) == int(argument), f"{len(found)} events instead of {argument}"
            print(store.GetServerInfo(pb.GetServerInfoRequest(), metadata=metadata, timeout=5).version)
        break
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
            sys.exit(f"{action}: {error.code().name} {error.details()}")
        time.sleep(0.2)
END
}

[ "$("$DOCKER" run --rm "$image" id -u)" != 0 ] || fail "the image runs as root"
"$DOCKER" run --rm "$image" orisun --version
"$DOCKER" run --rm "$image" orisun-operator --help >/dev/null
ok "commands, not as root"

run --publish 127.0.0.1::5005 "$image"
client save one
client read 1 >/dev/null
ok "a store alone, with PostgreSQL and NATS inside, on a read-only file system"
"$DOCKER" stop --time 45 "$name" >/dev/null
[ "$("$DOCKER" inspect --format '{{.State.ExitCode}}' "$name")" = 0 ] || fail "docker stop does not end it in time"
"$DOCKER" rm "$name" >/dev/null
run "$image"
client read 1 >/dev/null
"$DOCKER" rm --force "$name" >/dev/null
"$DOCKER" volume rm "$name" >/dev/null
ok "a new container finds what the old one stored in /var/lib/orisun/data"

"$DOCKER" network create "$name" >/dev/null
if ! "$DOCKER" image inspect "$POSTGRES_IMAGE" >/dev/null 2>&1 && ! "$DOCKER" pull --quiet "$POSTGRES_IMAGE" >/dev/null 2>&1; then
  echo "note: $POSTGRES_IMAGE cannot be had here; Debian's PostgreSQL stands in"
  POSTGRES_IMAGE=orisun-test-postgres:local
  "$DOCKER" image inspect "$POSTGRES_IMAGE" >/dev/null 2>&1 ||
    "$DOCKER" build --quiet --network host --tag "$POSTGRES_IMAGE" scripts/test_postgres >/dev/null
fi
"$DOCKER" run --detach --name "$name-pg" --network "$name" --env POSTGRES_DB=orisun --env POSTGRES_PASSWORD=secret-1 \
  "$POSTGRES_IMAGE" >/dev/null
database=(--network "$name" --env ORISUN_PG_HOST="$name-pg" --env ORISUN_PG_USER=postgres --env ORISUN_PG_PASSWORD=secret-1
  --env ORISUN_PG_NAME=orisun --restart on-failure)
run "${database[@]}" "$image"
client save one
client save two
client read 2 >/dev/null
"$DOCKER" rm --force "$name" >/dev/null
ok "a server with a PostgreSQL beside it"

scripts/make_certificates.sh "$work/tls" localhost >/dev/null
run "${database[@]}" --env ORISUN_GRPC_TLS_ENABLED=true --volume "$work/tls:/etc/orisun/tls:ro" "$image"
TLS=yes client save three
echo "version $(TLS=yes client read 3)"
ok "TLS"
"$DOCKER" rm --force --volumes "$name" "$name-pg" >/dev/null

if ! "$DOCKER" compose version >/dev/null 2>&1; then
  cat >&2 <<'END'
################################################################################
#  NOT TESTED: compose.yaml and compose.tls.yaml. Install docker compose.      #
################################################################################
END
  exit 0
fi
container=$name-orisun-1
# the published port, by the program of the documents where it is at hand; arguments: how grpcurl is to trust
listed() {
  [[ $(compose port orisun 5005) = 127.0.0.1:* ]] || fail "compose.yaml publishes port 5005 beyond this machine"
  command -v grpcurl >/dev/null || return 0
  [[ $(grpcurl "$@" -H "Authorization: Basic YWRtaW46Y2hhbmdlaXQ=" "$(compose port orisun 5005)" list) = *orisun.EventStore* ]] ||
    fail "no orisun.EventStore on the published port"
}
compose up --detach --wait
client save one
listed -plaintext
curl --fail --silent --show-error --location --output /dev/null "http://$(compose port orisun 8991)/"
"$DOCKER" exec "$container" touch /var/lib/orisun/data/kept
ok "compose.yaml: PostgreSQL and a server, the admin page on this machine"
compose down --timeout 45
compose up --detach --wait
client read 1 >/dev/null
client save two
"$DOCKER" exec "$container" test -e /var/lib/orisun/data/kept || fail "down and up: /var/lib/orisun/data is another one"
ok "down and up again: events and /var/lib/orisun/data are still there"
export TLS=yes
compose up --detach --wait
client read 2 >/dev/null
client save three
listed -cacert "$work/tls/ca.crt"
ok "compose.tls.yaml over it"
