redis-cli sadd tags a b a
test "$(redis-cli scard tags)" = 2
