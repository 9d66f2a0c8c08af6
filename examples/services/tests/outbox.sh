# Rows of PostgreSQL become entries of a Redis stream.
psql -qc 'create table outbox as select generate_series(1, 25) as id'
psql -Atc 'select id from outbox order by id' | while read -r id; do redis-cli xadd events "$id-0" id "$id" </dev/null; done
test "$(redis-cli xlen events)" = 25
