"""`pytest --testyard-isolate`: each test in an environment of its own, forked from a warm interpreter."""
