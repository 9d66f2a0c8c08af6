redis-cli set key value px 20
until test "$(redis-cli exists key)" = 0; do :; done
