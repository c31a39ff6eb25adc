#!/usr/bin/env bash
# Runs a command with DIFFALIGN_POSTGRES set to a PostgreSQL of its own, which is stopped at the end.
#   tests/postgres.sh python -m pytest tests/preferences
# Debian's package is installed where it is missing and we may; else the command runs without, and the
# tests that need PostgreSQL skip. The server listens on a Unix socket in a temporary folder alone.
set -euo pipefail
. "$(dirname "$0")/debian.sh"

without() {
    echo "PostgreSQL's tests will skip: $1" >&2
    shift
    exec "$@"
}

[ -z "${DIFFALIGN_POSTGRES:-}" ] || exec "$@" # there is one already

find_server() { { find /usr/lib/postgresql -name initdb -printf "%h\n" 2>/dev/null || true; } | sort -V | tail -1; }

install_server() {
    may_install || return 1
    mkdir -p /etc/postgresql-common  # or the package starts a server that nobody asked for
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    install postgresql
}

bin=$(find_server)
if [ -z "$bin" ]; then
    install_server && bin=$(find_server)
    [ -n "$bin" ] || without "it is not installed, and we cannot install Debian's package 'postgresql' here." "$@"
fi

folder=$(mktemp -d)
as_server=()
if [ "$(id -u)" = 0 ]; then # the server refuses to run as root
    chown postgres "$folder"
    as_server=(runuser -u postgres --)
fi
stop() {
    cd / # the server's user may not see where we are
    "${as_server[@]}" "$bin/pg_ctl" stop -D "$folder/data" -m immediate -s || true
    rm -rf "$folder"
}
trap stop EXIT

(
    cd "$folder" # the server's user may not see where we are
    "${as_server[@]}" "$bin/initdb" -D data -U diffalign --auth=trust --encoding=UTF8 --no-sync >/dev/null
    "${as_server[@]}" "$bin/pg_ctl" start -D data -s -w -l log \
        -o "-c listen_addresses='' -k $folder -c max_connections=200" || { cat log >&2; exit 1; }
)

DIFFALIGN_POSTGRES="postgresql+psycopg://diffalign@/postgres?host=$folder" "$@"
