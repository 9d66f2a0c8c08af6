"""Environments that are made when they are first used, by their first command itself where that is what uses them.

Making and running are one request then, and one answer; an environment that nobody uses is never made. Its end is told
and not waited for. Fixtures hand these out: what they lose is that an environment which cannot be made says so at its
first use only. Their session makes the first of each kind at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional

from . import _protocol as protocol
from ._connection import Connection, Exchange
from ._process import Completed, Text, checked, converse, not_started, ready
from .environment import Environment
from .errors import ConnectionLost, InvalidInput, NotFound, TestyardError

if TYPE_CHECKING:
    from ._place import _How
    from .machine import Machine

#: How long an interrupted first command has to end, in seconds.
_INTERRUPTED_SECONDS = 5.0


class LateEnvironment(Environment):
    """An environment that is made at its first use."""

    def __init__(self, machine: Machine, request: dict[str, Any]) -> None:
        self._set_up(machine, request)
        self._wanted_source: Optional[str] = request.get("source")
        #: Held by whoever makes it, until it has a number.
        self._beginning = threading.RLock()
        self._closed = False
        self._yet_to_begin = True
        _unmade.add(self)

    def _run(
        self, command: protocol.Command, how: _How, *, check: bool, input: Optional[Text], text: bool
    ) -> Completed:
        if self._yet_to_begin and not self._closed:
            with contextlib.ExitStack() as turn:
                turn.enter_context(self._beginning)
                if self._is_unmade():
                    cwd, env, user, timeout = how
                    request = protocol.exec_request(
                        command,
                        place={"fresh": self._request},
                        cwd=cwd,
                        env=env,
                        user=user,
                        timeout=timeout,
                        ports=self.ports,
                        linger="always",
                    )
                    # Another thread need not wait for the command's end, only for its start.
                    data = ready(request, input, quiet=_is_alone())
                    done = self._run_first(command, request, data, text, check, turn.close)
                    return checked(done, check, timeout)
        return super()._run(command, how, check=check, input=input, text=text)

    def _run_first(
        self,
        command: protocol.Command,
        request: dict[str, Any],
        data: Optional[bytes],
        text: bool,
        check: bool,
        let_others: Callable[[], object],
    ) -> Completed:
        holder = self._take_holder()

        def known(told: Mapping[str, Any]) -> None:
            self._begun(told.get("environment"))
            let_others()

        try:
            if self._source is not None:
                request["exec"]["source"] = self._source
            exchange = Exchange(holder, request)
            try:
                done, told = converse(exchange, command, data, text, known)
            except TestyardError:
                raise
            except BaseException:
                self._interrupted(holder, exchange)
                raise
            known(told)
            return done
        except BaseException as error:
            if isinstance(error, TestyardError) and not isinstance(error, ConnectionLost):
                # It goes with the command that never was, also where that one's process was told of already.
                self._yet_to_begin, self._number = True, 0
            if self._yet_to_begin:
                self._forsake(holder, error)
            if isinstance(error, TestyardError):
                return not_started(command, error, check, text)
            raise

    def _interrupted(self, holder: Connection, exchange: Exchange) -> None:
        """Whoever waited for the first command waits no more: it ends, and the environment stays for what follows."""
        with contextlib.suppress(TestyardError):
            exchange.send("kill")
            with holder.patience(_INTERRUPTED_SECONDS):
                while self._yet_to_begin:
                    event = exchange.pump(lambda channel, data: None)
                    if event is not None:
                        self._begun(event.get("started", event.get("exited", {})).get("environment"))
        if exchange.number:
            holder.owe(exchange.number)

    def _take_holder(self) -> Connection:
        self._holder = self._connections.take()
        if self._wanted_source is not None:
            from ._source import open_source

            try:
                self._source = open_source(self._holder, self._wanted_source)
            except BaseException as error:
                self._forsake(self._holder, error)
                raise
        return self._holder

    def _begun(self, number: Optional[int]) -> None:
        """It is there; without a number, it went with its first command."""
        if self._yet_to_begin:
            self._yet_to_begin = False
            self._number = number or 0
            _unmade.discard(self)

    def _forsake(self, holder: Connection, error: BaseException) -> None:
        self._holder = None
        if self._source is None and isinstance(error, TestyardError):
            self._connections._spare(holder, error)
        else:
            holder.close()
        self._source = None

    def _is_unmade(self) -> bool:
        """Whether it is this caller's to make."""
        if self._yet_to_begin and self._holder is not None:
            raise InvalidInput("the environment's first command is just beginning", hints=["wait for it"])
        return self._yet_to_begin and not self._closed

    def _begin(self) -> None:
        """Makes it, unless it is there."""
        if not self._yet_to_begin or self._closed:
            return
        with self._beginning:
            if self._is_unmade():
                holder = self._take_holder()
                try:
                    told = holder.request({"environment": self._request})
                except BaseException as error:
                    self._forsake(holder, error)
                    raise
                self._begun(int(told["environment"]["id"]))

    @property
    def id(self) -> str:
        """Its number as people see it; it is made for that."""
        self._begin()
        return super().id

    def close(self) -> None:
        """Ends it, with all that runs in it, without waiting for that. Fine to call twice."""
        if self._closed:
            return
        self._closed = True
        _unmade.discard(self)
        holder, self._holder = self._holder, None
        if holder is None:
            return
        try:
            if self._number:
                holder.send_unawaited({"release": self._number})
        except ConnectionLost:
            holder.close()  # The machine is gone, and the environment with it.
            return
        # A source lives as long as its connection.
        if self._source is None:
            self._connections.give_back(holder)
        else:
            holder.close()

    def _let_go(self) -> None:
        self._closed = True
        super()._let_go()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidInput(f"environment {super().id} of {self.machine.name} is closed")
        self._begin()
        if not self._number:
            raise NotFound(f"the environment of {self.machine.name} ended with its first command")

    def __repr__(self) -> str:
        return f"<LateEnvironment of {self.machine.name}{', closed' if self._closed else ''}>"


def _is_alone() -> bool:
    """Whether nobody else can come while this thread waits."""
    return threading.active_count() == 1 and "gevent" not in sys.modules


#: Those that a child of a fork shall share with its parent: they are made before there is one.
_unmade: set[LateEnvironment] = set()


def _make_before_fork() -> None:
    for one in list(_unmade):
        with contextlib.suppress(TestyardError):
            one._begin()


os.register_at_fork(before=_make_before_fork)
