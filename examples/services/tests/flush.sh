# The server's own default, and nobody else notices.
redis-cli flushall
redis-cli set mark "$TESTYARD_TEST"
