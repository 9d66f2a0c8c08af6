test "$(redis-cli config get port | tail -1)" = 6379
test "$(psql -Atc 'show port')" = 5432
