#!/usr/bin/env bash
# Builds the images orisun:VERSION and orisun-nats:VERSION.
#
#   images.sh [VERSION]              by default pyproject.toml's version
#   IMAGE=registry/orisun images.sh  under another name (and IMAGE-nats)
#   TARGET_ARCH=arm64 images.sh      for other machines
#   DOCKER=podman DOCKER_BUILD_ARGS="--network host" images.sh
#
# pip's settings on this machine (its pip.conf, certificate and index) are handed to the build as secrets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VERSION=${1:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
IMAGE=${IMAGE:-orisun}
export DOCKER_BUILDKIT=1

# builds PROGRAM: whether it can do RUN --mount; a docker newer than 23 needs its buildx for that
builds() {
  "$1" buildx version >/dev/null 2>&1 || case $("$1" --version 2>/dev/null) in
    "Docker version "1[89].* | "Docker version "2[0-2].* | podman*) ;;
    *) return 1 ;;
  esac
}
if [ -z "${DOCKER:-}" ]; then
  for program in $(type -aP docker podman); do
    if builds "$program"; then DOCKER=$program; break; fi
  done
  [ -n "${DOCKER:-}" ] || { echo "error: no docker that can build with BuildKit; install docker-buildx" >&2; exit 1; }
fi

secrets=()
for file in "${PIP_CONFIG_FILE:-}" "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf" /etc/pip.conf; do
  if [ -s "$file" ]; then secrets+=(--secret "id=pip.conf,src=$file"); break; fi
done
for file in "${PIP_CERT:-}" "${REQUESTS_CA_BUNDLE:-}" "${SSL_CERT_FILE:-}"; do
  if [ -s "$file" ]; then secrets+=(--secret "id=ca.crt,src=$file"); break; fi
done
if [ -n "${PIP_INDEX_URL:-}" ]; then secrets+=(--secret id=index,env=PIP_INDEX_URL); fi

commit=$(git rev-parse --short=12 HEAD 2>/dev/null || true)
built=$(date -u +%Y-%m-%dT%H:%M:%SZ)
read -ra more <<<"${DOCKER_BUILD_ARGS:-}"
for name in TARGET_OS TARGET_ARCH; do
  if [ -n "${!name:-}" ]; then more+=(--build-arg "$name=${!name}"); fi
done
for target in orisun nats; do
  name=$IMAGE$([ "$target" = orisun ] || echo "-$target"):$VERSION
  "$DOCKER" build --quiet ${more[@]+"${more[@]}"} ${secrets[@]+"${secrets[@]}"} --target "$target" --tag "$name" \
    --build-arg VERSION="$VERSION" --build-arg GIT_COMMIT="$commit" --build-arg BUILD_TIME="$built" . >/dev/null
  DOCKER=$DOCKER scripts/image_size.sh "$name"
done
