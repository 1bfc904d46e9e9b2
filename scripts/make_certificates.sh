#!/bin/sh
# An authority, a server's certificate and a client's, for trying TLS out:  make_certificates.sh DIRECTORY [NAME ...]
# NAMEs are the host names that the server's certificate is for (localhost).
set -eu
if [ $# -lt 1 ]; then sed -n '2,3s/^# //p' "$0" >&2; exit 2; fi
directory=$1; shift
[ $# -gt 0 ] || set -- localhost
names=$(printf 'DNS:%s,' "$@")IP:127.0.0.1
umask 077
mkdir -p "$directory"
cd "$directory"
openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/O=Orisun/CN=Orisun CA" -keyout ca.key -out ca.crt 2>/dev/null
issue() { # issue FILE COMMON-NAME EXTENSION
  openssl req -newkey rsa:2048 -nodes -subj "/O=Orisun/CN=$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  printf '%s\n' "$3" >"$1.ext"
  openssl x509 -req -days 365 -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm -f "$1.csr" "$1.ext"
}
issue server "$1" "subjectAltName=$names"
issue client client "extendedKeyUsage=clientAuth"
# the server in the container is another user; the authority's key stays closed
chmod 755 .
chmod 644 server.crt server.key client.crt ca.crt
echo "in $directory: ca.crt, server.crt, server.key, client.crt, client.key"
