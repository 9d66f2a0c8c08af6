test "$(redis-cli set lock me nx)" = OK
test -z "$(redis-cli set lock you nx)"
