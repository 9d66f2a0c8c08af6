redis-cli rpush queue a b c
test "$(redis-cli lpop queue)" = a
test "$(redis-cli llen queue)" = 2
