"""The pyinfra connector: `pyinfra @testyard/web deploy.py` deploys onto machine `web`, `@testyard` onto all that run.

Nothing here starts an SSH server: commands and files go over the machine's socket. Commands are built by pyinfra's own
`make_unix_command`, so that its global arguments mean what they mean elsewhere.

pyinfra runs every host in a greenlet of one thread. Its command line replaces Python's blocking modules by gevent's
before anything else is imported; then calls of the client wait in their own greenlet. Where a program uses pyinfra as
a library without that, each call goes through gevent's pool of threads instead, so that no host waits for another.
"""

from __future__ import annotations

import re
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Iterator,
    Mapping,
    NamedTuple,
    Optional,
    TypedDict,
    TypeVar,
    Union,
    cast,
)

from pyinfra import logger
from pyinfra.api.exceptions import ConnectError, InventoryError
from pyinfra.connectors.base import BaseConnector, DataMeta
from pyinfra.connectors.util import (
    CommandOutput,
    OutputLine,
    execute_command_with_sudo_retry,
    extract_control_arguments,
    make_unix_command_for_host,
    read_output_buffers,
    remove_any_sudo_askpass_file,
)

from .errors import TestyardError

if TYPE_CHECKING:
    from pyinfra.api.command import StringCommand
    from pyinfra.api.host import Host
    from pyinfra.api.state import State

    from testyard import Machine, MachineInfo, Process

__all__ = ["TestyardConnector"]

_Result = TypeVar("_Result")
_User = Union[None, str, int]


class _Data(TypedDict):
    testyard_name: Optional[str]
    testyard_user: _User


class _Privileges(NamedTuple):
    """Whom the machine itself runs a command as, and what is left for the command line to ask for."""

    user: _User
    arguments: dict[str, Any]


class TestyardConnector(BaseConnector):
    """Machines of Testyard.

    `@testyard` are all machines that run, `@testyard/NAME` is one. Each is in the groups `testyard`, and of its image,
    backend and state (`testyard_image_debian_12`, `testyard_backend_namespace`, `testyard_state_running`), and has the
    data `testyard_name`, `testyard_id`, `testyard_image`, `testyard_backend` and `testyard_state`.

    Commands run as the machine's default user where it was created with one, else as root; `testyard_user` overrides
    it. `_sudo` works where the machine has no sudo, too: then the machine runs the command as that user itself.
    """

    __test__ = False
    handles_execution = True

    data_cls = _Data
    data_meta = {
        "testyard_name": DataMeta("Name of the machine"),
        "testyard_user": DataMeta("Whom commands run as: the machine's default user, else root"),
    }

    def __init__(self, state: State, host: Host) -> None:
        super().__init__(state, host)
        self._machine: Optional[Machine] = None
        self._user: _User = "root"
        self._has_sudo = False

    @staticmethod
    def make_names_data(name: Optional[str] = None) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """The machines that a name in an inventory means. Raises InventoryError where there are none."""
        try:
            from testyard import Machine

            infos = [Machine.get(name).info()] if name else _running(Machine.list())
        except TestyardError as error:
            raise InventoryError(_told(error)) from None
        for info in infos:
            yield f"@testyard/{info.name}", _data(info), _groups(info)

    def connect(self) -> None:
        """Connect to the machine. Raises ConnectError with the cause and what to do."""
        try:
            _cooperatively(self._connect)
        except TestyardError as error:
            raise ConnectError(_told(error)) from None

    def _connect(self) -> None:
        from testyard import Machine

        name = self.data["testyard_name"] or str(self.host.name).rpartition("/")[2]
        machine = Machine.get(name)
        self._user = self.data["testyard_user"]
        if self._user is None:
            self._user = _default_user(machine.info())
        # One command proves that the agent answers and the user exists, and tells whether sudo can work: its set-user
        # bit means nothing in a machine with one id.
        found = machine.run("command -v sudo; cat /proc/self/uid_map", user=self._user, check=False)
        ids = sum(int(line.split()[2]) for line in found.stdout.splitlines() if re.fullmatch(r"(\s*\d+){3}\s*", line))
        self._has_sudo = "sudo" in found.stdout and ids > 1
        self._machine = machine

    def disconnect(self) -> None:
        """Close the connection; the machine goes on running."""
        if self._machine is not None:
            # pyinfra does it, too, but only afterwards.
            remove_any_sudo_askpass_file(self.host)
            self._machine.close()
            self._machine = None

    def run_shell_command(
        self,
        command: StringCommand,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> tuple[bool, CommandOutput]:
        """Run a command: whether it succeeded, and its output.

        Raises TimeoutError where its `_timeout` in seconds is up, and OSError where the machine failed.
        """
        control = extract_control_arguments(arguments)  # type: ignore[arg-type]
        if control.get("_get_pty"):
            logger.debug("%s: @testyard has no terminals; _get_pty is left out", self.host.name)
        data = _stdin_data(control.get("_stdin"))

        def execute() -> tuple[int, CommandOutput]:
            line, user = self._line(command, arguments)
            if print_input:
                _echo(f"{self.host.print_prefix}>>> {line}")
            try:
                return _cooperatively(
                    lambda: self._run(line.get_raw_value(), user, data, control.get("_timeout"), print_output)
                )
            except TestyardError as error:
                return _not_run(error)

        code, output = execute_command_with_sudo_retry(self.host, arguments, execute)  # type: ignore[arg-type]
        return code in (control.get("_success_exit_codes") or (0,)), output

    def put_file(
        self,
        filename_or_io: Any,
        remote_filename: str,
        remote_temp_filename: Optional[str] = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        """Copy a file or file object into the machine: an existing file keeps its mode and owner. Raises OSError."""
        from pyinfra.api.command import QuoteString, StringCommand
        from pyinfra.api.util import get_file_io

        with get_file_io(filename_or_io) as source:
            content = source.read()
        data = content.encode() if isinstance(content, str) else bytes(content)
        if arguments.get("_su_user") and arguments.get("_su_password"):
            # The password goes in where the content would: so the content lies in a file already.
            staged = remote_temp_filename or self.host.get_temp_filename(remote_filename)
            self._copy(StringCommand("cat >", QuoteString(staged)), {}, data)
            try:
                self._copy(StringCommand("cp", QuoteString(staged), QuoteString(remote_filename)), arguments)
            finally:
                self._copy(StringCommand("rm", "-f", QuoteString(staged)), {})
        else:
            self._copy(StringCommand("cat >", QuoteString(remote_filename)), arguments, data)
        if print_output:
            _echo(f"{self.host.print_prefix}file uploaded: {remote_filename}")
        return True

    def get_file(
        self,
        remote_filename: str,
        filename_or_io: Any,
        remote_temp_filename: Optional[str] = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        """Copy a file of the machine to a file or file object of ours. Raises OSError."""
        from pyinfra.api.command import QuoteString, StringCommand
        from pyinfra.api.util import get_file_io

        content = self._copy(StringCommand("cat", "--", QuoteString(remote_filename)), arguments)
        with get_file_io(filename_or_io, "wb") as target:
            target.write(content)
        if print_output:
            _echo(f"{self.host.print_prefix}file downloaded: {remote_filename}")
        return True

    def _copy(self, command: StringCommand, arguments: Mapping[str, Any], data: Optional[bytes] = None) -> bytes:
        """What a command wrote, given `data`. Raises OSError where it failed."""
        rest = dict(arguments)
        extract_control_arguments(rest)  # type: ignore[arg-type]
        line, user = self._line(command, rest)

        def copy() -> bytes:
            done = self._connected().run(line.get_raw_value(), user=user, input=data, text=False, check=False)
            if done.returncode != 0:
                told: str = done.stderr.decode("utf-8", "replace").strip()
                raise OSError(told or f"{line} ended with exit code {done.returncode}")
            content: bytes = done.stdout
            return content

        try:
            return _cooperatively(copy)
        except TestyardError as error:
            raise OSError(_told(error)) from None

    def _line(self, command: StringCommand, arguments: Mapping[str, Any]) -> tuple[StringCommand, _User]:
        user, rest = self._privileges(arguments)
        return make_unix_command_for_host(self.state, self.host, command, **rest), user

    def _privileges(self, arguments: Mapping[str, Any]) -> _Privileges:
        rest = dict(arguments)
        if not rest.get("_sudo") or self._has_sudo or rest.get("_sudo_password"):
            return _Privileges(self._user, rest)
        for name in ("_sudo", "_use_sudo_login", "_preserve_sudo_env"):
            rest.pop(name, None)
        return _Privileges(rest.pop("_sudo_user", None) or "root", rest)

    def _run(
        self, line: str, user: _User, data: Optional[str], timeout: Optional[float], print_output: bool
    ) -> tuple[int, CommandOutput]:
        from testyard import DEVNULL, PIPE

        stdin = DEVNULL if data is None else PIPE
        with self._connected().spawn(line, user=user, stdin=stdin, timeout=timeout or None) as process:
            if data is not None:
                _feed(process, data)
            output = read_output_buffers(
                process.stdout,
                process.stderr,
                timeout=None,
                print_output=print_output,
                print_prefix=self.host.print_prefix,
            )
            code = process.wait()
        if process.timed_out:
            raise TimeoutError(f"the command took longer than {timeout} s")
        return code, output

    def _connected(self) -> Machine:
        if self._machine is None:
            raise OSError(f"{self.host.name} is not connected")
        return self._machine


def _running(infos: list[MachineInfo]) -> list[MachineInfo]:
    running = [info for info in infos if info.state == "running"]
    if not running:
        others = [f"{info.name} is {info.state}" for info in infos[:5]]
        raise TestyardError("no machine runs", causes=others, hints=["make one: testyard create web"])
    return running


def _default_user(info: MachineInfo) -> Optional[str]:
    # Backend `host` has the one user that made the machine.
    return info.user or (None if info.backend == "host" else "root")


def _data(info: MachineInfo) -> dict[str, Any]:
    return {
        "testyard_name": info.name,
        "testyard_id": info.id,
        "testyard_image": info.image,
        "testyard_backend": info.backend,
        "testyard_state": info.state,
    }


def _groups(info: MachineInfo) -> list[str]:
    parts = [("image", info.image), ("backend", info.backend), ("state", info.state)]
    return ["testyard", *(f"testyard_{key}_{re.sub(r'[^A-Za-z0-9]+', '_', value)}" for key, value in parts)]


def _cooperatively(action: Callable[[], _Result]) -> _Result:
    """Do what waits, without keeping other greenlets waiting."""
    from gevent import get_hub, monkey

    if monkey.is_module_patched("socket") and monkey.is_module_patched("threading"):
        return action()
    # What the pool's thread raises, gevent would print with its traceback before it raises it here.
    result, error = get_hub().threadpool.apply(lambda: _caught(action))
    if error is not None:
        raise error
    return cast(_Result, result)


def _caught(action: Callable[[], _Result]) -> tuple[Optional[_Result], Optional[BaseException]]:
    try:
        return action(), None
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        return None, error


def _feed(process: Process, data: str) -> None:
    try:
        process.stdin.write(data)
        process.stdin.close()
    except BrokenPipeError:
        pass  # It ended without reading all of it.


def _stdin_data(stdin: Any) -> Optional[str]:
    """What pyinfra's `_stdin` means: lines, each ended."""
    if not stdin:
        return None
    lines = stdin.readlines() if hasattr(stdin, "readlines") else stdin
    if not isinstance(lines, (list, tuple)):
        lines = [lines]
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _not_run(error: TestyardError) -> tuple[int, CommandOutput]:
    """A command that could not be started is a failed one; where the machine failed, pyinfra gives the host up."""
    from .errors import CommandFailed, MachineNotFound, NotFound, PermissionRefused

    if isinstance(error, MachineNotFound) or not isinstance(error, (CommandFailed, NotFound, PermissionRefused)):
        raise OSError(_told(error)) from None
    return 127, CommandOutput([OutputLine("stderr", line) for line in str(error).splitlines()])


def _told(error: TestyardError) -> str:
    """Message, cause and hint in one line, as pyinfra prints errors."""
    causes = "".join(f": {cause}" for cause in error.causes)
    hints = f" ({'; '.join(error.hints)})" if error.hints else ""
    return f"{error.message}{causes}{hints}"


def _echo(text: str) -> None:
    from pyinfra.api.output import echo

    echo(text, err=True)
