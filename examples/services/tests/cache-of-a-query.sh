# What an application does: look in Redis, else ask PostgreSQL and remember.
psql -qc "create table product as select 7 as id, 'lamp' as name"
name=$(redis-cli get product:7)
test -z "$name"
name=$(psql -Atc 'select name from product where id = 7')
redis-cli setex product:7 60 "$name"
test "$(redis-cli get product:7)" = lamp
