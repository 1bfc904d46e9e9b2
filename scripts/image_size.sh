#!/usr/bin/env bash
# Says how large an image of ours is, and how much of that is not the base image's, which nodes often have already.
#
#   image_size.sh IMAGE [MOST]       fails where its own layers are larger than MOST megabytes
set -euo pipefail
image=$1 most=${2:-1000000}
history=$("${DOCKER:-docker}" history --no-trunc --human=false --format '{{.Size}} {{.CreatedBy}}' "$image")
# newest first; our first step is the one that makes the user, or copies nats-server
awk -v image="$image" -v most="$most" '
  { total += $1; if (!base) own += $1 }
  /groupadd --gid 10001|^[0-9]+ COPY .opt.nats.nats-server .usr.local.bin/ { base = 1 }
  END {
    printf "%s  %.0f MB, %.0f MB of it its own\n", image, total / 1e6, own / 1e6
    if (!base) { print "error: " image ": which layers are its own?" > "/dev/stderr"; exit 1 }
    if (own / 1e6 > most) { print "error: " image ": more than " most " MB of its own" > "/dev/stderr"; exit 1 }
  }' <<<"$history"
