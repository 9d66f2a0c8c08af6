"""What the fixtures do, imported when a test first uses one of them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Callable, Generator, Iterator, List, Optional, TypeVar

import pytest

from . import session_of, wishes
from ._session import Told

if TYPE_CHECKING:
    from testyard import Machine, Ports
    from testyard.vms import TestVMManager, VmName

    from ._places import IsolatedEnv, RecordedPlace, Vm
    from ._session import Session


Answer = TypeVar("Answer")


class _Unnamed(str):
    """An image that the test's author did not name."""

    __slots__ = ()


#: What suites of VMs expect where they name no image. A host where it is not stored uses its own root, with a warning.
USUAL = _Unnamed("ubuntu:22.04")


def machine(request: pytest.FixtureRequest) -> Machine:
    """The run's machine."""
    session = session_of(request.config)
    with Told(session):
        return session.machine()
    raise AssertionError("unreachable: an error ends the fixture")


def isolated_env(request: pytest.FixtureRequest) -> Iterator[IsolatedEnv]:
    """An environment of the test's own in the run's machine."""
    from ._places import IsolatedEnv

    yield from _place(request, IsolatedEnv)


def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    """A place like a machine, fresh for the test."""
    from ._places import Vm

    yield from _place(request, Vm, user="root", cgroups=True)


def ports(request: pytest.FixtureRequest) -> Iterator[Ports]:
    """Free ports of the host."""
    from testyard.ports import Ports

    with Ports(request.node.nodeid) as leased:
        yield leased


def test_vm(request: pytest.FixtureRequest) -> Iterator[VmName]:
    """A running machine of the test's own."""
    session = session_of(request.config)
    with Told(session):
        from testyard.vms import create_test_vm, delete_test_vm

        asked = wishes(request.node)
        user = None if asked.user is None else str(asked.user)
        name = create_test_vm(_image(session, asked.image or USUAL), user=user)
    yield name
    _quietly(lambda: delete_test_vm(name))


def test_vm_manager(request: pytest.FixtureRequest) -> Iterator[Callable[..., TestVMManager]]:
    """A factory of managers, whose machines are deleted when the test ends."""
    session = session_of(request.config)
    managers: List[TestVMManager] = []

    def make(image: str = USUAL, name_prefix: str = "test-vm", **kwargs: Any) -> TestVMManager:
        from testyard import _given as given
        from testyard.vms import TestVMManager

        given.options(kwargs, TestVMManager.__init__, "test_vm_manager")
        manager = TestVMManager(image=_image(session, image), name_prefix=name_prefix, **kwargs)
        managers.append(manager)
        return manager

    yield _unframed(make)
    for manager in reversed(managers):
        _quietly(manager.delete)


def vm_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., List[VmName]]]:
    """A factory of running machines, made side by side."""
    session = session_of(request.config)
    made: List[VmName] = []

    def make(count: int, image: str = USUAL, name_prefix: str = "test-vm") -> List[VmName]:
        from concurrent.futures import ThreadPoolExecutor

        from testyard.errors import InvalidInput
        from testyard.vms import create_test_vm

        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 256:
            raise InvalidInput(f"{count!r} is no number of machines", hints=["ask for 1 to 256"])
        used = _image(session, image)
        error: Optional[BaseException] = None
        names: List[VmName] = []
        with ThreadPoolExecutor(min(count, 8)) as pool:
            for future in [pool.submit(create_test_vm, used, name_prefix) for _ in range(count)]:
                try:
                    names.append(future.result())
                except BaseException as told:  # noqa: BLE001 - raised below, when what was made is written down
                    error = told
        made.extend(names)
        if error is not None:
            raise error
        return names

    yield _unframed(make)
    from testyard.vms import delete_test_vm

    for name in made:
        _quietly(lambda name=name: delete_test_vm(name))  # type: ignore[misc]


def _unframed(factory: Callable[..., Answer]) -> Callable[..., Answer]:
    """The same, its errors without the package's own frames."""
    import functools

    from ._places import unframed

    @functools.wraps(factory)
    def made(*arguments: Any, **options: Any) -> Answer:
        __tracebackhide__ = True
        return unframed(lambda: factory(*arguments, **options))

    return made


def _image(session: Session, image: str) -> str:
    """The image to use; a warning says where that is not what was asked for."""
    if not isinstance(image, _Unnamed):
        return session.image_for(image)
    if session.settings.image:
        return session.image_for(session.settings.image)
    from testyard._vms.images import ImageStandInWarning, is_stored

    if is_stored(image):
        return str(image)
    message = f"no image was named, and {image} is not there: this host's root is used (say testyard_image, or image=)"
    warnings.warn(message, ImageStandInWarning, stacklevel=3)
    return "host"


def _place(
    request: pytest.FixtureRequest, kind: type[Any], user: Any = None, cgroups: bool = False
) -> Generator[Any, None, None]:
    session = session_of(request.config)
    nodeid = request.node.nodeid
    with Told(session):
        place: RecordedPlace = _made(session, kind, wishes(request.node), nodeid, user, cgroups)
    session.places.setdefault(nodeid, []).append(place)
    try:
        yield place
    finally:
        remaining = [one for one in session.places.pop(nodeid, []) if one is not place]
        if remaining:
            session.places[nodeid] = remaining
        _quietly(place.close)


def _made(session: Session, kind: type[Any], asked: Any, nodeid: str, user: Any, cgroups: bool) -> RecordedPlace:
    isolation = _least(asked)
    who = user if asked.user is None else asked.user
    if isolation == "machine":
        return _made_alone(session, kind, asked, nodeid, who, cgroups)
    machine = session.machine(asked)
    if isolation == "none":
        return kind(machine, None, nodeid, user=who)  # type: ignore[no-any-return]
    if machine._info.backend == "host" and isolation == "namespace":
        said = asked.backend or session.settings.backend
        if asked.network not in (None, "host"):
            session.lacks(f"network `{asked.network}` is more than backend `host` gives (see: testyard doctor)")
        if asked.isolation is not None or said != "host" or cgroups:
            session.lacks("isolation `namespace` is more than backend `host` gives (see: testyard doctor)")
        isolation = "workspace"
    network = asked.network or ("private" if isolation == "namespace" else "host")
    options = _options(session, asked, isolation, network, who, cgroups)
    turn = session.turn_of(machine.name, options)
    if turn == 1 or isolation != "namespace" or session.settings.keep_failed is not None:
        # What cannot be made says so here, and the test is skipped.
        return kind(machine, machine.environment(**options), nodeid)  # type: ignore[no-any-return]
    if turn == 2:
        # There will be more of the kind: the next is made while a test runs.
        machine._park_meanwhile(session.workers, **options)
    return kind(machine, machine._late_environment(**options), nodeid)  # type: ignore[no-any-return]


def _made_alone(session: Session, kind: type[Any], asked: Any, nodeid: str, user: Any, cgroups: bool) -> RecordedPlace:
    """A machine of the test's own; an environment in it where more is asked for than machines have."""
    from testyard import Machine
    from testyard.machine import fresh_name

    options = _options(session, asked, "namespace", asked.network or "host", user, cgroups)
    inside = options["network"] != "host" or options["source"] is not None or "pids" in asked.limits
    own = Machine.create(
        fresh_name("test"),
        image=session.image_for(asked.image or session.settings.image or "host"),
        backend=asked.backend or session.settings.backend,
        user=user,
        hold=True,
        **({} if inside else asked.limits),
    )
    place: RecordedPlace = kind(own, None, nodeid, own=True)
    try:
        if own.info().backend == "host":
            session.lacks("isolation `machine`: backend `host` has no machines for single tests (see: testyard doctor)")
        return kind(own, own.environment(**options), nodeid, own=True) if inside else place
    except BaseException:
        place.close()
        raise


def _least(asked: Any) -> str:
    """The isolation that has all that was asked for, from the one that was asked for on."""
    isolation: str = asked.isolation or "namespace"
    if isolation in ("none", "workspace") and asked.network not in (None, "host"):
        return "namespace"
    if isolation == "none" and (asked.limits or asked.source):
        return "workspace"
    return isolation


def _options(session: Session, asked: Any, isolation: str, network: str, user: Any, cgroups: bool) -> dict[str, Any]:
    source = session.settings.source if asked.source is None else asked.source
    return {
        "isolation": isolation,
        "network": network,
        "user": user,
        "limits": asked.limits,
        "strict_limits": bool(asked.limits),
        "source": session.settings.root if source is True else source or None,
        "cgroups": cgroups and isolation == "namespace",
    }


def _quietly(action: Callable[[], object]) -> None:
    """Ends something. A machine that has gone took it along; anything else is told, without our own frames."""
    from testyard.errors import ConnectionLost, NotFound, TestyardError

    try:
        action()
    except (ConnectionLost, NotFound):
        pass
    except TestyardError as error:
        pytest.fail(str(error), pytrace=False)
