test "$(redis-cli eval 'return redis.call("incrby", KEYS[1], 40) + 2' 1 answer)" = 42
