"""Many isolated tests at once on one developer's machine."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

from ..errors import InvalidInput
from .isolation import IsolationManager, TestResult


@dataclass(frozen=True)
class TestSummary:
    """How a run of isolated tests ended. Its fields are there as items too: `summary["passed"]`."""

    __test__ = False

    #: Tests that passed, and that did not.
    passed: int
    failed: int
    #: Seconds from the first test's begin to the last one's end.
    duration: float
    #: One a test, in the order in which they were given.
    results: list[TestResult]

    @property
    def total(self) -> int:
        """All tests."""
        return len(self.results)

    @property
    def success_rate(self) -> float:
        """The part that passed: 1.0 where there was none to fail."""
        return self.passed / self.total if self.results else 1.0

    def __getitem__(self, key: str) -> Any:
        try:
            return getattr(self, key)
        except AttributeError:
            raise KeyError(key) from None

    def __contains__(self, key: str) -> bool:
        return hasattr(self, key)

    def __str__(self) -> str:
        lines = [f"{self.passed} passed, {self.failed} failed in {self.duration:.2f} s"]
        for result in self.results:
            if not result.passed:
                why = result.error or f"exit code {result.exit_code}"
                lines.append(f"  {result.name}: {why.splitlines()[0]}")
        return "\n".join(lines)


class ConcurrentTestRunner:
    """Runs tests side by side, `max_workers` at once. `client` has a `.dev`, or is one."""

    __test__ = False

    def __init__(self, client: Any, max_workers: int = 10) -> None:
        if not isinstance(max_workers, int) or isinstance(max_workers, bool) or not 1 <= max_workers <= 1000:
            raise InvalidInput(f"{max_workers!r} is no number of workers", hints=["give 1 to 1000"])
        self.max_workers = max_workers
        self.isolation = IsolationManager(client)

    def run_tests_concurrently(
        self,
        tests: Sequence[tuple[str, str]],
        timeout: Optional[float] = None,
        *,
        network: str = "private",
        env: Optional[Mapping[str, str]] = None,
    ) -> TestSummary:
        """Runs each (name, command) as `IsolationManager.run_isolated_test` does; `timeout` is seconds for each.

        Raises InvalidInput, and what befalls the machine before the first test."""
        given = [_checked(test) for test in tests]
        if not given:
            return TestSummary(0, 0, 0.0, [])
        self.isolation._start()
        begun = time.monotonic()

        def one(test: tuple[str, str]) -> TestResult:
            return self.isolation.run_isolated_test(test[0], test[1], timeout, network=network, env=env)

        with ThreadPoolExecutor(min(self.max_workers, len(given)), thread_name_prefix="testyard-test") as pool:
            results = list(pool.map(one, given))
        passed = sum(result.passed for result in results)
        return TestSummary(passed, len(results) - passed, time.monotonic() - begun, results)


def _checked(test: Any) -> tuple[str, str]:
    if (
        isinstance(test, (tuple, list))
        and len(test) == 2
        and all(isinstance(part, str) and part.strip() for part in test)
    ):
        return test[0], test[1]
    raise InvalidInput(
        f"{test!r} is no test", hints=['give pairs of a name and a command: [("login", "make test-login")]']
    )
