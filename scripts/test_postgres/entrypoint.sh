#!/bin/sh
# As the official image: the first start makes the database POSTGRES_DB with the password POSTGRES_PASSWORD, by a server
# that listens on no network.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  (umask 077 && printf '%s\n' "$POSTGRES_PASSWORD" >/tmp/password)
  initdb --username="${POSTGRES_USER:-postgres}" --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256 \
    --encoding=UTF8 >/dev/null
  rm /tmp/password
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl --silent --wait -o "-c listen_addresses=''" start
  createdb --username="${POSTGRES_USER:-postgres}" "${POSTGRES_DB:-postgres}"
  pg_ctl --silent --wait stop
fi
exec postgres -c listen_addresses='*'
