#!/bin/sh
# Runs a test once it has seen that both servers are its own: nobody has written to them before, nobody does meanwhile.
set -eu
# The programs themselves: Debian's `psql` is a script that looks for clusters first.
PATH=$(ls -d /usr/lib/postgresql/*/bin | tail -1):$PATH
export PATH PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=postgres
tables="select count(*) from pg_tables where schemaname = 'public'"
test "$(psql -Atc "$tables")" = 0 || { echo "this PostgreSQL was used before" >&2; exit 1; }
test "$(redis-cli dbsize)" = 0 || { echo "this Redis was used before" >&2; exit 1; }
psql -qc "create table mark as select '$TESTYARD_TEST' as test"
redis-cli set mark "$TESTYARD_TEST" >/dev/null
"$@"
test "$(psql -Atc 'select test from mark')" = "$TESTYARD_TEST"
test "$(redis-cli get mark)" = "$TESTYARD_TEST"
