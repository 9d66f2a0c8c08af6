"""The one retry policy and the one table of limits, without a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from testyard import errors
from testyard._retry import RETRY, RetryPolicy, Timeouts, is_transient, limit_of, set_timeouts, timeouts

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "lifecycle.md"


class Clock:
    """Time that passes only by pauses, and by what an action says that it took."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def failing(times: int, error: Exception, clock: Clock | None = None, takes: float = 0.0):
    """An action that fails so often before it succeeds, with the number of its calls."""
    calls = []

    def action() -> str:
        calls.append(1)
        if clock is not None:
            clock.now += takes
        if len(calls) <= times:
            raise error
        return "done"

    return action, calls


def call(policy: RetryPolicy, action, clock: Clock, total: float = 1000.0, jitter=lambda low, high: high):
    return policy.call(action, total=total, pause=clock.pause, clock=lambda: clock.now, jitter=jitter)


def test_delays_double_up_to_their_longest_and_jitter_is_full() -> None:
    clock, spans = Clock(), []
    action, calls = failing(9, errors.ConnectionLost("gone"))

    def jitter(low: float, high: float) -> float:
        spans.append((low, high))
        return high

    with pytest.raises(errors.ConnectionLost):
        call(RetryPolicy(attempts=6, first_delay=1.0, factor=2.0, longest_delay=5.0), action, clock, jitter=jitter)
    assert spans == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.0, 5.0), (0.0, 5.0)]
    assert clock.pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert len(calls) == 6


def test_what_fails_once_and_then_succeeds_is_a_success() -> None:
    action, calls = failing(2, errors.TimedOut("slow"))
    assert call(RETRY, action, Clock()) == "done"
    assert len(calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidInput("wrong"),
        errors.MachineNotFound("none"),
        errors.MachineExists("taken"),
        errors.WrongState("stopped"),
        errors.NotSupported("cannot"),
        errors.InfrastructureError("broken"),
        errors.CommandFailed("false", 1),
        errors.CommandTimedOut("sleep 9", 1.0),
        ValueError("ours"),
    ],
)
def test_what_would_fail_again_is_told_at_once(error: Exception) -> None:
    assert not is_transient(error)
    action, calls = failing(1, error)
    with pytest.raises(type(error)):
        call(RETRY, action, Clock())
    assert len(calls) == 1


def test_no_attempt_begins_after_the_total() -> None:
    clock = Clock()
    action, calls = failing(9, errors.ConnectionLost("gone"), clock, takes=4.0)
    with pytest.raises(errors.ConnectionLost):
        call(RetryPolicy(attempts=9), action, clock, total=10.0)
    assert len(calls) == 3


def test_every_limit_can_be_overridden_by_the_environment_and_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Timeouts._fields:
        monkeypatch.setenv(f"TESTYARD_TIMEOUT_{name.upper()}", "7.5")
    assert set(timeouts()) == {7.5}
    try:
        assert set_timeouts(create=3).create == 3.0
        assert limit_of(["create", "web"]) == 3.0
        assert limit_of(["image", "build", "debian:12"]) == 7.5
        assert limit_of(["reap"]) is None
    finally:
        assert set_timeouts(create=None).create == 7.5


def test_a_limit_that_is_none_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTYARD_TIMEOUT_START", "soon")
    with pytest.raises(errors.InvalidInput, match="TESTYARD_TIMEOUT_START is 'soon'"):
        timeouts()
    monkeypatch.delenv("TESTYARD_TIMEOUT_START")
    for wrong in ({"create": 0}, {"create": float("inf")}, {"creation": 3}):
        with pytest.raises(errors.InvalidInput):
            set_timeouts(**wrong)
    assert timeouts() == Timeouts()


def test_the_documents_tables_are_those_of_the_code() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    told = {row.split("`")[1]: row for row in rows}
    for name, seconds in Timeouts()._asdict().items():
        assert f"`TESTYARD_TIMEOUT_{name.upper()}`" in told[name], told[name]
        assert f"| {seconds:g} |" in told[name], told[name]
    for name in errors.__all__:
        if name == "TestyardError":
            continue
        cls = getattr(errors, name)
        assert f"| {'yes' if cls.transient else 'no'} |" in told[name], told[name]
