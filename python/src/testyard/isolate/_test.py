"""One isolated test as its parent sees it: what its child said, turned into what pytest's plugins are told."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Optional

import pytest

from ..plugin._places import Kept
from ._fork import Running, ending
from ._keeping import Keeping
from ._reports import warning_in

#: How programs say that there is no network.
_NO_NETWORK = (
    "Temporary failure in name resolution",
    "Name or service not known",
    "Network is unreachable",
    "Connection refused",
    "gaierror",
)
_SECLUDED = (
    "the test ran with a network of its own, in which nothing else is; where it needs another: "
    '--testyard-isolate-network=outbound or host, or @pytest.mark.testyard(network="host")'
)


#: What a child says where the session is not to go on.
_ENDING = ("broken", "exit", "interrupt", "stop")


class Test:
    """A test whose child was forked."""

    __test__ = False

    def __init__(
        self, item: Any, running: Running, keeping: Keeping, set_up: float, timeout: Optional[float], *, announced: bool
    ) -> None:
        self.item = item
        #: The one that comes after it, once that is known.
        self.nextitem: Optional[Any] = None
        self.running = running
        self.deadline: Optional[float] = None
        self.begun = False
        self.timed_out = False
        #: What it printed, where its process ended before its time: sections of a report.
        self.printed: list[tuple[str, str]] = []
        #: What is to be raised once the test is told of.
        self.raising: Optional[BaseException] = None
        #: What coverage measured, as text.
        self.measured: Optional[str] = None
        #: Names and files of the modules that it imported first.
        self.imported: list[tuple[str, str]] = []
        #: The pages of memory that it wrote.
        self.pages: Optional[list[int]] = None
        self._keeping = keeping
        self._kept: Optional[Kept] = None
        self._told_of_keeping = False
        self._timeout = timeout
        self._set_up = set_up
        self._began = time.time()
        self._announced = announced
        self._waiting: list[tuple[str, Any]] = []
        self._last: Optional[Any] = None
        self._phases: list[str] = []

    def begin(self) -> None:
        """Lets its process run it. Once; its time runs from here."""
        if not self.begun:
            self.begun = True
            self._began = time.time()
            if self._timeout is not None:
                self.deadline = time.monotonic() + self._timeout
            self.running.begin()

    def listen(self) -> None:
        """Takes in what the child said; where it failed, its environment is kept from here on."""
        heard = self.running.listen()
        self._waiting += heard
        if any(kind == "report" and _is_failure(body) for kind, body in heard):
            self.has_failed()

    def has_failed(self) -> None:
        """Keeps its environment where that is asked for. Once."""
        if self._kept is None:
            self._kept = self._keeping.keep(self.running.door, self.item.nodeid)

    @property
    def lives_on(self) -> bool:
        """Whether its environment is not to be ended."""
        return self._kept is not None and self._kept.lives

    def is_usable(self) -> bool:
        """Whether its process, made ahead, is there and waits to begin, or has begun."""
        if not self.begun:
            self.listen()
        return self.begun or not (self.running.over or self._waiting)

    def went_well(self) -> bool:
        """Whether it is over, and nothing of what is still to be told could end the session."""
        return self.running.ended and all(
            kind not in _ENDING and not (kind == "report" and body.get("outcome") == "failed")
            for kind, body in self._waiting
        )

    def announce(self) -> None:
        """Tells that it has begun, once."""
        if not self._announced:
            self._announced = True
            self.item.ihook.pytest_runtest_logstart(nodeid=self.item.nodeid, location=self.item.location)

    def tell(self) -> None:
        """Passes on what the child said, but the report of its tear-down: the parent may have one to add."""
        self.announce()
        waiting, self._waiting = self._waiting, []
        for kind, body in waiting:
            self._follow(kind, body)

    def tell_end(self, torn_down: Optional[Any]) -> None:
        """Tells the rest: how it ended, and with `torn_down` what failed in the parent."""
        self.tell()
        if not self.running.ended and self.raising is None:
            self._report(self._broken_off())
        last = self._last
        if last is not None and torn_down is not None:
            if last.outcome == "failed":
                torn_down.sections.append(("tear-down of the test itself", last.longreprtext))
            last = torn_down
        elif last is None:
            last = torn_down
        if last is not None:
            self.item.ihook.pytest_runtest_logreport(report=last)
        self.item.ihook.pytest_runtest_logfinish(nodeid=self.item.nodeid, location=self.item.location)

    def _follow(self, kind: str, body: Any) -> None:
        if kind == "report":
            report = self.item.config.hook.pytest_report_from_serializable(config=self.item.config, data=body)
            if report is not None:
                self._take(report)
        elif kind == "warning":
            self.item.ihook.pytest_warning_recorded.call_historic(
                kwargs={
                    "warning_message": warning_in(body["warning"]),
                    "when": body["when"],
                    "nodeid": body["nodeid"],
                    "location": body["location"],
                }
            )
        elif kind == "junit":
            self._follow_junit(body)
        elif kind == "coverage":
            self.measured = str(body)
        elif kind == "imported":
            self.imported = body
        elif kind == "pages":
            self.pages = body
        elif kind == "stop":
            self.item.session.shouldstop = str(body)
        elif kind == "exit":
            self.raising = pytest.exit.Exception(body["message"], body["returncode"])
        elif kind == "interrupt":
            self.raising = KeyboardInterrupt()
        elif kind == "broken":
            self.raising = RuntimeError("a test's process failed outside of the test:\n" + str(body))

    def _take(self, report: Any) -> None:
        when = getattr(report, "when", None)
        if when in ("setup", "call", "teardown"):
            self._phases.append(when)
        if when == "setup" and self._set_up:
            report.duration += self._set_up
            if hasattr(report, "start"):
                report.start -= self._set_up
            self._set_up = 0.0
        if when == "teardown" and self._last is None:
            self._last = report
            return
        if self._last is not None:
            # A test that another plugin runs again.
            self._report(self._last)
            self._last = report if when == "teardown" else None
            if self._last is not None:
                return
        self._report(report)

    def _report(self, report: Any) -> None:
        if report.failed and self.running.door.is_secluded and any(text in report.longreprtext for text in _NO_NETWORK):
            report.sections.append(("testyard", _SECLUDED))
        if report.failed and self._kept is not None and not self._told_of_keeping:
            self._told_of_keeping = True
            name = self._keeping.name(self.running.door)
            report.sections.append((f"testyard {name}", self._kept.told))
        self.item.ihook.pytest_runtest_logreport(report=report)

    def _follow_junit(self, body: Any) -> None:
        with contextlib.suppress(ImportError, AttributeError):
            from _pytest.junitxml import xml_key

            xml = self.item.config.stash.get(xml_key, None)
            if xml is not None:
                for name, value in body["attributes"]:
                    xml.node_reporter(self.item.nodeid).attrs[name] = value
                known = [tuple(one) for one in xml.global_properties]
                xml.global_properties += [tuple(one) for one in body["properties"] if tuple(one) not in known]

    def _broken_off(self) -> Any:
        """The report of a test whose process ended before its time."""
        phase = "setup" if not self._phases else ("call" if "call" not in self._phases else "teardown")
        if self.timed_out:
            message = f"Timeout: the test's process said nothing more within {self._patience():.1f} s, and was ended"
        else:
            status = self.running.status
            message = f"the test's process {ending(status) if status is not None else 'is gone'}, in its {phase} phase"
        return pytest.TestReport(
            nodeid=self.item.nodeid,
            location=self.item.location,
            keywords=dict.fromkeys(self.item.keywords, 1),
            outcome="failed",
            longrepr=message,
            when=phase if phase != "teardown" else "call",  # type: ignore[arg-type]
            sections=self.printed,
            duration=time.time() - self._began,
            start=self._began,
            stop=time.time(),
        )

    def _patience(self) -> float:
        return time.time() - self._began


def _is_failure(report: Any) -> bool:
    """Whether a report, as a child sends it, is one of those that an environment is kept for."""
    return bool(report.get("outcome") == "failed" and report.get("when") != "teardown")
