"""Imported by every test in Python: refuses to run on a bare machine."""

import os
import sys

visible = [name for name in os.listdir("/proc") if name.isdigit()]
if not os.environ.get("TESTYARD_TEST") or os.getppid() > 1 or len(visible) > 2:
    sys.exit("refused: this test is for an environment of its own; run it with: testyard run examples/quickstart")
