#!/bin/sh
# Makes ./template, an empty PostgreSQL database of which each test's own is a copy. Once is enough.
set -eu
cd "$(dirname "$0")"
test ! -d template || exit 0
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
# Not in TMPDIR, which may be closed to the user of the database.
work=$(mktemp -d /tmp/template.XXXXXX)
trap 'rm -r "$work"' EXIT
as=
if [ "$(id -u)" = 0 ]; then
    chown postgres "$work"
    as="setpriv --reuid=postgres --regid=postgres --clear-groups --"
fi
(cd "$work" && $as "$bin/initdb" --pgdata="$work/data" --username=postgres --auth=trust --encoding=UTF8 --locale=C \
    --no-sync --no-instructions --wal-segsize=1 >/dev/null)
# Whoever runs the tests reads it.
cp -r "$work/data" template.part
chmod -R a+rX template.part
mv template.part template
