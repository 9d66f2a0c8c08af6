"""What the program refuses, where it is told before the program is asked."""

from __future__ import annotations

#: The most nodes of a cluster.
MOST_NODES = 200
