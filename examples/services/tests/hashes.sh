redis-cli hset user name ana age 30
test "$(redis-cli hget user age)" = 30
