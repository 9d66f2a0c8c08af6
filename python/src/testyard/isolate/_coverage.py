"""Coverage that was measured in children, added to the parent's own.

What a child measured travels as coverage's own portable form; nothing is written to the tree for it.
"""

from __future__ import annotations

import base64
import sys
from typing import Any, Optional


def _current() -> Any:
    module = sys.modules.get("coverage")
    return module.Coverage.current() if module is not None else None


def measured() -> Optional[str]:
    """In the child: stops measuring; what there is, or None where nobody measures."""
    current = _current()
    if current is None:
        return None
    current.stop()
    data = current.get_data()
    return base64.b64encode(data.dumps()).decode() if data.measured_files() else None


class Collected:
    """In the parent: what the children sent."""

    def __init__(self) -> None:
        self._texts: set[str] = set()

    def add(self, text: str) -> None:
        """Takes what one child measured."""
        self._texts.add(text)

    def merge(self) -> None:
        """Adds it to what this process measures. To be called before that is saved."""
        current = _current()
        if current is None or not self._texts:
            return
        from coverage import CoverageData

        data = current.get_data()
        for text in self._texts:
            part = CoverageData(no_disk=True)
            part.loads(base64.b64decode(text))
            data.update(part)
        self._texts.clear()
