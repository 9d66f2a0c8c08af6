#!/bin/sh
# A PostgreSQL over a copy of ./template, which ./template.sh has made.
set -eu
test -d template || { echo "make the template first: ./template.sh" >&2; exit 1; }
cp -r template /tmp/postgres
chmod -R go= /tmp/postgres
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
# Nothing of it outlives the test, so nothing is forced to a disk.
exec "$bin/postgres" -D /tmp/postgres -c listen_addresses=127.0.0.1 -c unix_socket_directories=/tmp \
    -c shared_buffers=4MB -c max_connections=20 -c max_wal_senders=0 -c max_worker_processes=0 \
    -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c autovacuum=off
