"""What the SDK's provider does below `flow.dev`: tasks, commands and files. Imported by `drive_flow.py`."""

from __future__ import annotations

import os
from dataclasses import astuple
from pathlib import Path
from typing import Any, Callable


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, else all names of what it raises, and its words."""
    try:
        returned = call()
    except Exception as error:
        return [*(kind.__name__ for kind in type(error).__mro__[:-1]), str(error)]
    return returned.decode() if isinstance(returned, bytes) else returned


def tasks(flow: Any, config: Any, status: Any, task_id: str, more: dict[str, Any]) -> dict[str, Any]:
    """The machine as a task, and tasks that are refused. `config` makes one of these words."""
    provider = flow.provider
    names = {one.value: [task.task_id for task in provider.list_tasks(status=one)] for one in status}
    ours = config(name="dev-other", env={"FLOW_DEV_VM": "true"}, **more)
    return {
        "tasks": {value: found for value, found in names.items() if found},
        "of several": [task.task_id for task in provider.list_tasks(status=list(status))],
        "of the sdk": [task.task_id for task in flow.list_tasks(status=status.RUNNING)],
        "missing": [outcome(lambda: provider.get_task("nobody")), outcome(lambda: provider.cancel_task("nobody"))],
        "other task": outcome(lambda: provider.submit_task("h100", config(name="train", env={}, **more))),
        "volumes": outcome(lambda: provider.submit_task("h100", ours, volume_ids=["v1"])),
        "logs": [type(provider.get_task_logs(task_id)).__name__, outcome(lambda: provider.get_task_logs("nobody"))],
    }


def commands(remote: Any, task_id: str) -> dict[str, Any]:
    """Commands on it, and shells on this process's own streams."""
    return {
        "said": remote.execute_command(task_id, "echo said; echo wrong >&2"),
        "fails": outcome(lambda: remote.execute_command(task_id, "echo why >&2; exit 3")),
        "too long": outcome(lambda: remote.execute_command(task_id, "sleep 600", timeout=1)),
        "no command": outcome(lambda: remote.execute_command("nobody", "true")),
        "shell": [
            outcome(lambda: remote.open_shell(task_id, command="echo in the shell")),
            # Nothing is typed: it ends at once.
            outcome(lambda: remote.open_shell(task_id)),
        ],
        "shell fails": outcome(lambda: remote.open_shell(task_id, command="exit 3")),
        "no shell": outcome(lambda: remote.open_shell("nobody", command="true")),
    }


def retrieved(remote: Any, task_id: str) -> dict[str, Any]:
    """Files as version 0.0.3 asks for them."""
    remote.execute_command(task_id, "echo content > ~/result")
    paths = {"file": "/root/result", "below home": "result", "missing": "/no/such/file", "folder": "/root"}
    found = {name: outcome(lambda path=path: remote.retrieve_file(task_id, path)) for name, path in paths.items()}
    return {**found, "of nobody": outcome(lambda: remote.retrieve_file("nobody", "/etc/hostname"))}


def copied(flow: Any, remote: Any, task_id: str) -> dict[str, Any]:
    """Files as version 3 copies them, through its own client where that has the words."""
    here, back = Path("here"), Path("back")
    here.write_bytes(bytes(range(256)) * 1000)
    here.chmod(0o640)
    os.mkfifo("pipe")
    put, get = flow.ssh.put_file, flow.ssh.get_file
    put(task_id, here, "~/there")
    get(task_id, "there", back)
    seen = {
        "equal": back.read_bytes() == here.read_bytes(),
        "mode": remote.execute_command(task_id, "stat -c %a ~/there").strip(),
        "exec": astuple(flow.ssh.exec_command(task_id, "echo said; echo wrong >&2; exit 3")),
        "up": remote.upload_file(task_id, here, "/tmp/up"),
        "down": remote.download_file(task_id, "/tmp/up", Path("down")) and Path("down").stat().st_size,
    }
    refused = {
        "put missing": lambda: put(task_id, Path("missing"), "~/x"),
        "put folder": lambda: put(task_id, Path(), "~/x"),
        "put pipe": lambda: put(task_id, Path("pipe"), "~/x"),
        "put of no size": lambda: put(task_id, Path("/proc/self/status"), "~/x"),
        "put nowhere": lambda: remote.put_file(task_id, here, ""),
        "put on folder": lambda: put(task_id, here, "/tmp"),
        "put for nobody": lambda: put("nobody", here, "x"),
        "get missing": lambda: get(task_id, "/no/such/file", back),
        "get on folder": lambda: get(task_id, "there", Path()),
        "get into nothing": lambda: get(task_id, "there", Path("no/folder")),
        "get nothing": lambda: remote.get_file(task_id, "a\0b", back),
        "get of nobody": lambda: get("nobody", "there", back),
    }
    seen["refused"] = {name: outcome(call) for name, call in refused.items()}
    seen["untouched"] = back.read_bytes() == here.read_bytes() and sorted(os.listdir())
    seen["not there"] = remote.execute_command(task_id, "ls ~/x 2>/dev/null; true")
    return seen
