"""What the tests of one process share: the run's machines, what the host can do, what commands wrote last.

A run has one machine for each image and backend that its tests ask for. It is named after the run, which all workers
of pytest-xdist know, made by whoever needs it first, and held by everybody who uses it: see `testyard._hold`.
"""

from __future__ import annotations

import os
import time
import zlib
from typing import TYPE_CHECKING, Any, Callable, NoReturn, Optional, TypeVar, Union

import pytest

from testyard.errors import MachineExists, MachineNotFound, NotSupported, TestyardError, WrongState

from ._settings import Settings, near

if TYPE_CHECKING:
    from testyard import Machine

    from ._clusters import Clusters
    from ._marker import Wishes
    from ._places import RecordedPlace

Answer = TypeVar("Answer")
#: How long a worker waits for what another one makes, in seconds.
PATIENCE = 180.0


class Session:
    """One for each process that runs tests."""

    def __init__(self, settings: Settings, worker: Optional[dict[str, Any]]) -> None:
        self.settings = settings
        run = (worker or {}).get("testrunuid") or os.environ.get("PYTEST_XDIST_TESTRUNUID") or os.urandom(8).hex()
        self.run = "".join(letter for letter in str(run) if letter.isalnum())[:16] or os.urandom(8).hex()
        self._machines: dict[tuple[str, str], Machine] = {}
        self._held: list[str] = []
        self._abilities: Union[None, dict[str, dict[str, Any]], TestyardError] = None
        #: The places that each running test has, for what is told when it fails.
        self.places: dict[str, list[RecordedPlace]] = {}
        self._kinds: dict[str, int] = {}
        self._clusters: Optional[Clusters] = None
        #: How many processes run tests side by side, as far as this host has processors for them.
        self.workers = max(1, min(int((worker or {}).get("workercount", 1)), os.cpu_count() or 1))
        # A child of a fork has machines' names, but holds none of them and deletes nothing at its end.
        self._process = os.getpid()

    @property
    def clusters(self) -> Clusters:
        """The run's cluster, and what is live on it."""
        if self._clusters is None:
            from ._clusters import Clusters

            self._clusters = Clusters(self.run, self.settings)
        return self._clusters

    def image_for(self, image: str) -> str:
        """The image to use for this one, which is there: itself, or what the project says stands in for it."""
        if image == "host":
            return image
        from testyard.vms import available_image, set_project_image

        set_project_image(self.settings.image)
        return available_image(image)

    def machine(self, wishes: Optional[Wishes] = None) -> Machine:
        """The run's machine for what a test asks for; running, and held by this process."""
        image = (wishes and wishes.image) or self.settings.image or "host"
        backend = (wishes and wishes.backend) or self.settings.backend
        key = (image, backend)
        known = self._machines.get(key)
        if known is None:
            if self.settings.machine and (wishes is None or not wishes.names_machine()):
                from testyard import Machine

                known = Machine.ensure(self.settings.machine, image=self.image_for(image), backend=backend)
            else:
                known = self._shared(image, backend)
            self._machines[key] = known
        return known

    def _shared(self, image: str, backend: str) -> Machine:
        name = f"pytest-{self.run}-{zlib.crc32(f'{image}/{backend}'.encode()):08x}"
        used = self.image_for(image)
        late = WrongState(f"machine {name} does not come up", hints=[f"testyard info {name}"])
        found = awaited(lambda: made_or_held(name, used, backend), MachineNotFound, late)
        self._held.append(name)
        return found

    def turn_of(self, machine: str, options: dict[str, Any]) -> int:
        """How many places of this kind were asked for, with this one."""
        kind = f"{machine} {options}"
        self._kinds[kind] = self._kinds.get(kind, 0) + 1
        return self._kinds[kind]

    def check_needs(self, needs: list[str]) -> None:
        """Skips, or fails where skips are not wanted, unless the host has all of these abilities."""
        try:
            word = self.missing(needs)
        except TestyardError as error:
            pytest.fail(f"what this host can do is not known\n{error}", pytrace=False)
        if word is None:
            return
        abilities = self.abilities()
        probe = abilities.get(word)
        if probe is None:
            known = tuple(abilities)
            pytest.fail(f"needs={word!r} is no ability{near(word, known)} (see: testyard doctor)", pytrace=False)
        why = f"needs {word}: {probe.get('reason', 'it is not there')}"
        provide = probe.get("provide")
        self.lacks(f"{why}; what would provide it: {provide}" if provide else why)

    def missing(self, needs: list[str]) -> Optional[str]:
        """The first of these abilities that the host has not; None where it has all. Raises what `abilities` raises."""
        abilities = self.abilities() if needs else {}
        return next((word for word in needs if abilities.get(word, {}).get("answer") != "yes"), None)

    def lacks(self, reason: str) -> NoReturn:
        """This host cannot run the test: skipped by name, or failed where skips are not wanted."""
        if self.settings.no_skip:
            pytest.fail(f"{reason} (skips are failures here: testyard_no_skip)", pytrace=False)
        # Told of where the test is, not of here.
        raise pytest.skip.Exception(reason, _use_item_location=True)

    def abilities(self) -> dict[str, dict[str, Any]]:
        """The probes' answers by ability, read once. Raises what asking for them raised, each time."""
        if self._abilities is None:
            from testyard import doctor

            try:
                self._abilities = {probe["ability"]: probe for probe in doctor()["probes"]}
            except TestyardError as error:
                self._abilities = error
        if isinstance(self._abilities, TestyardError):
            raise self._abilities.with_traceback(None)
        return self._abilities

    def told_of_failure(self, item: pytest.Item) -> list[tuple[str, str]]:
        """Sections of the report of a failed test: what its places' last commands wrote, and how to enter them."""
        sections = []
        for place in self.places.get(item.nodeid, ()):
            text = place.told()
            if self.settings.keep_failed is not None:
                text += place.keep(self.settings.keep_failed, item.nodeid)
            if text:
                sections.append((f"testyard {place.shown}", text))
        return sections

    def close(self) -> None:
        """Lets every machine go. What cannot be deleted now is deleted by the next command that looks around."""
        machines, self._machines = self._machines, {}
        held, self._held = self._held, []
        if os.getpid() != self._process:
            return
        for machine in machines.values():
            machine.close()
        if self._clusters is not None:
            self._clusters.close()
        if held:
            from testyard import _hold

            for name in held:
                try:
                    _hold.unhold(name)
                except TestyardError as error:
                    import warnings

                    warnings.warn(f"machine {name} is left: {error}", stacklevel=1)


def made_or_held(name: str, image: str, backend: str) -> Optional[Machine]:
    """One step to the machine of this name, held by this process: it is made, or found running. None: not yet.

    Raises MachineNotFound and WrongState where it has just gone, and what making it raises."""
    from testyard import Machine, _hold

    try:
        machine = Machine.create(name, image=image, backend=backend, hold=True)
    except MachineExists:
        _hold.hold(name)
        machine = Machine.get(name)
        state = machine.info().state
        if state in ("stopped", "failed"):
            machine.start()
        elif state != "running":
            return None
    # It is deleted by its last holder, never by this object.
    machine._created = False
    return machine


def awaited(step: Callable[[], Optional[Answer]], gone: type[TestyardError], late: TestyardError) -> Answer:
    """What some worker of the run makes: a step to it is taken until it leads there.

    `gone` is what a step raises where it has just gone, `late` what is raised where it does not come."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            found = step()
        except (gone, WrongState):
            # Its last holder has just let it go, or whoever made it could not.
            found = None
        if found is not None:
            return found
        if time.monotonic() > until:
            raise late
        time.sleep(0.05)


class Told:
    """Ends a fixture where Testyard raises an error: a host that cannot is a skip by name, everything else an error
    without the package's own frames."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        __tracebackhide__ = True
        if isinstance(error, NotSupported) and error.kind == "unsupported":
            self.session.lacks(str(error).replace("\n", "; "))
        if isinstance(error, TestyardError):
            pytest.fail(str(error), pytrace=False)
