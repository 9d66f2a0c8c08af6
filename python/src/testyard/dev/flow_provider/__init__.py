"""A provider for the `flow-compute` SDK: its `flow.dev` on a machine of Testyard. Chosen with `FLOW_PROVIDER=testyard`.

SDKs of version 3 and later find it by its entry point, and nothing need be imported. Version 0.0.3 knows no entry
points: there `import testyard.dev.flow_provider` registers it, before the first `Flow()`."""

from __future__ import annotations

import importlib.util
from typing import Any

__all__ = ["NAME", "TestyardProvider"]

#: What `FLOW_PROVIDER` says.
NAME = "testyard"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _provider() -> Any:
    if _is_there("flow.adapters.providers.registry"):
        from ._current import TestyardProvider as current

        return current
    if _is_there("flow.providers.registry"):
        from flow.providers.registry import ProviderRegistry

        from ._first import TestyardProvider as first

        ProviderRegistry.register(NAME, first)
        return first
    raise ImportError(
        "testyard.dev.flow_provider serves the SDK flow-compute, which is not installed: pip install flow-compute"
    )


TestyardProvider: Any = _provider()
