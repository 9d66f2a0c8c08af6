redis-cli zadd score 3 carl 1 ana 2 bo
test "$(redis-cli zrange score 0 0)" = ana
