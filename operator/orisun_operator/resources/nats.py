"""The NATS servers beside the Orisun servers: their configuration, credentials, container."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from .cluster import MONITOR_PORT, NATS_PORT, ROUTE_PORT, Cluster, Object
from .security import container_security

#: JetStream reserves what streams may grow to; with an exbibyte nothing is ever refused for that.
_NO_LIMIT = 1 << 60
#: Keys of the generated Secret.
USER, PASSWORD, URL = "username", "password", "url"
SYSTEM_USER, SYSTEM_PASSWORD = "system-username", "system-password"
ROUTE_USER, ROUTE_PASSWORD = "route-username", "route-password"
#: Keys of random text; the rest of the Secret follows from them.
PASSWORDS = (PASSWORD, SYSTEM_PASSWORD, ROUTE_PASSWORD)
#: Where the volume is mounted.
DATA = "/var/lib/nats"
#: Shared by both containers: the server writes here that it serves, or that it has drained.
SHARED = "/run/orisun"
DRAINED_FILE = f"{SHARED}/state"
#: Seconds that the NATS server waits for the server's drain, and that clients get which stay nevertheless.
DRAIN_PATIENCE, _LAME_DUCK = 40, 2

# A server that lost its store must not come back under its old name: it would vote twice. The name is kept with the
# store, and the operator removes the peers that no pod answers to any more.
#
# One at a time: a pod that is deleted by force (kubectl delete --force, a node's garbage collection) has its successor
# while its own processes still run, and two NATS servers that write one store leave a copy that fits nothing.
#
# SIGTERM makes a lame duck of it: it hands over what it leads, and ends by itself a second later if no client is left.
# Not in the hook, which would have to outlive the server: the kubelet counts a hook that dies with it as failed.
_START = f"""
set -eu
trap 'exit 0' TERM
waits=
if command exec 9> {DATA}/lock; then
  # a lock that somebody has is not worth a word to flock, anything else is
  while ! said=$(flock -n 9 2>&1); do
    if [ -n "$said" ]; then
      echo "warning: {DATA} cannot be locked ($said): never delete this pod by force, two NATS servers would spoil it"
      break
    fi
    if [ -z "$waits" ]; then echo "waiting: the NATS server of an earlier pod (deleted by force?) has the volume"; fi
    waits=yes
    sleep 0.1
  done
fi
for old in {DATA}/single-* {DATA}/cluster-*; do
  if [ "$old" != "$STORE" ]; then rm -rf "$old"; fi
done
mkdir -p "$STORE"
if ! [ -s "$STORE/name" ]; then
  tr -dc a-z0-9 < /dev/urandom | head -c 8 > "$STORE/name.new"
  mv "$STORE/name.new" "$STORE/name"
fi
export SERVER_NAME="$POD_NAME-$(cat "$STORE/name")"
stop() {{
  kill -USR2 "$nats" || :
  status=0
  wait "$nats" || status=$?
  exit $status
}}
nats-server --config /etc/nats/nats.conf &
nats=$!
trap stop TERM
trap 'kill -QUIT "$nats"; wait "$nats"' QUIT
wait "$nats"
"""

# The kubelet asks both containers to stop at the same time. The Orisun server needs NATS until it has drained.
_HOLD = f"""
i=0
while [ $i -lt {DRAIN_PATIENCE * 5} ] && grep -qs serving {DRAINED_FILE}; do sleep 0.2; i=$((i+1)); done
"""


def store_directory(cluster: Cluster) -> str:
    """Of JetStream: a new one for each beginning, so that no old cluster's state is taken for the new one's."""
    kind = "cluster" if cluster.spec.clustered else "single"
    return f"{DATA}/{kind}-{cluster.incarnation}"


def configuration(cluster: Cluster) -> Object:
    """ConfigMap of nats-server. Credentials and routes are in the Secret."""
    lines = [
        "# Written by orisun-operator",
        "server_name: $SERVER_NAME",
        f"listen: 0.0.0.0:{NATS_PORT}",
        f"http: 0.0.0.0:{MONITOR_PORT}",
        "include auth.conf",
        "max_payload: 8MB",
        f"lame_duck_grace_period: {_LAME_DUCK}s",
        "lame_duck_duration: 30s",
        "jetstream {",
        "  store_dir: $STORE",
        f"  max_memory_store: {_NO_LIMIT}",
        f"  max_file_store: {_NO_LIMIT}",
        "}",
    ]
    if cluster.spec.clustered:
        lines += [
            "cluster {",
            f"  name: {json.dumps(f'{cluster.namespace}-{cluster.name}')}",
            f"  listen: 0.0.0.0:{ROUTE_PORT}",
            "  cluster_advertise: $ADVERTISE",
            "  include routes.conf",
            "  no_advertise: true",
            "}",
        ]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": cluster.metadata(cluster.nats_config),
        "data": {"nats.conf": "\n".join(lines) + "\n"},
    }


def auth_secret(cluster: Cluster, passwords: Mapping[str, str]) -> Object:
    """Secret with the credentials, as values and as nats-server reads them; ``passwords`` has every PASSWORDS key."""
    password, system, route = (passwords[key] for key in PASSWORDS)
    accounts = {
        "SYS": {"users": [{"user": "system", "password": system}]},
        "ORISUN": {"jetstream": "enabled", "users": [{"user": "orisun", "password": password}]},
    }
    # every pod that the cluster may have by the time that a server starts; gossip does the rest
    routes = [f"nats-route://routes:{route}@{cluster.host(i)}:{ROUTE_PORT}" for i in range(cluster.spec.replicas)]
    data = {
        USER: "orisun",
        PASSWORD: password,
        URL: f"nats://orisun:{password}@127.0.0.1:{NATS_PORT}",
        SYSTEM_USER: "system",
        SYSTEM_PASSWORD: system,
        ROUTE_USER: "routes",
        ROUTE_PASSWORD: route,
        "auth.conf": f"accounts: {json.dumps(accounts)}\nsystem_account: SYS\n",
        "routes.conf": "authorization: "
        + json.dumps({"user": "routes", "password": route})
        + f"\nroutes: {json.dumps(routes if cluster.spec.clustered else [])}\n",
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": cluster.metadata(cluster.nats_secret),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def container(cluster: Cluster) -> Object:
    """The container ``nats`` of each pod."""
    probe = {"httpGet": {"path": "/healthz?js-enabled-only=true", "port": "monitor"}, "timeoutSeconds": 3}
    made: Object = {
        "name": "nats",
        "image": cluster.nats_image,
        "command": ["/bin/sh", "-c", _START],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "STORE", "value": store_directory(cluster)},
            {
                "name": "ADVERTISE",
                "value": f"$(POD_NAME).{cluster.headless}.{cluster.namespace}.svc.{cluster.domain}:{ROUTE_PORT}",
            },
        ],
        "ports": [
            {"name": "nats", "containerPort": NATS_PORT, "protocol": "TCP"},
            {"name": "routes", "containerPort": ROUTE_PORT, "protocol": "TCP"},
            {"name": "monitor", "containerPort": MONITOR_PORT, "protocol": "TCP"},
        ],
        # never JetStream's quorum: appends and reads go on without it
        "startupProbe": {**probe, "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {**probe, "periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", _HOLD]}}},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "jetstream", "mountPath": DATA},
            {"name": "nats-config", "mountPath": "/etc/nats", "readOnly": True},
            {"name": "shared", "mountPath": SHARED, "readOnly": True},
        ],
    }
    if cluster.pull_policy:
        made["imagePullPolicy"] = cluster.pull_policy
    if cluster.spec.nats.resources:
        made["resources"] = cluster.spec.nats.resources
    return made


def volumes(cluster: Cluster) -> list[Object]:
    """Volumes of the container, without the one that may be a claim."""
    return [
        {
            "name": "nats-config",
            "projected": {
                "defaultMode": 0o440,
                "sources": [
                    {"configMap": {"name": cluster.nats_config}},
                    {
                        "secret": {
                            "name": cluster.nats_secret,
                            "items": [{"key": key, "path": key} for key in ("auth.conf", "routes.conf")],
                        }
                    },
                ],
            },
        },
    ]
