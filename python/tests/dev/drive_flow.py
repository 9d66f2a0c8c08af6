"""Drives the real SDK; run by its own interpreter. Prints what it saw, as JSON."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flow_operations import commands, copied, outcome, retrieved, tasks


def drive() -> dict[str, Any]:
    """The surface that suites use, once through."""
    if sys.argv[1] == "register":
        import testyard.dev.flow_provider  # noqa: F401 - for its effect
    from flow import Flow

    flow = Flow()
    seen: dict[str, Any] = {}
    vm = flow.dev.ensure_started()
    seen["same"] = flow.dev.ensure_started().task_id == vm.task_id == Flow().dev.ensure_started().task_id
    # No system command of the SDK's, so that a container runs it.
    seen["left"] = flow.dev.exec("python3 -c \"open('/tmp/left', 'w').write('left')\"")
    seen["found"] = flow.dev.exec("cat /tmp/left")
    seen["home"] = [flow.dev.exec("touch /root/left"), flow.dev.exec("ls /root/left")]
    seen["fails"] = flow.dev.exec("python3 -c 'raise SystemExit(3)'")
    with ThreadPoolExecutor(50) as pool:
        codes = pool.map(lambda number: flow.dev.exec(f"touch /tmp/at-once-{number}"), range(50))
        seen["at once"] = sorted(set(codes))
        codes = pool.map(lambda number: flow.dev.exec(f"test {number} -ge 0", image="ubuntu:22.04"), range(50))
        seen["in containers"] = sorted(set(codes))
    seen["all"] = flow.dev.exec("sh -c 'test $(ls /tmp/at-once-* | wc -l) = 50'")
    seen["unknown image"] = flow.dev.exec("true", image="nonexistent/image:latest")
    with ThreadPoolExecutor(1) as pool:
        sleeper = pool.submit(flow.dev.exec, "touch /tmp/sleeps; sleep 600", image="ubuntu:22.04")
        flow.dev.exec("sh -c 'until test -e /tmp/sleeps; do sleep 0.05; done'")
        seen["status"] = flow.dev.status()
        flow.dev.reset()
        seen["ended"] = sleeper.result(60)
    seen["reset"] = flow.dev.status()["active_containers"]
    seen["kept"] = flow.dev.exec("cat /tmp/left")
    seen |= below(flow, vm.task_id)
    seen["stop"] = [flow.dev.stop(), flow.dev.stop()]
    seen["shell then"] = outcome(lambda: flow.provider.get_remote_operations().open_shell(vm.task_id, command="true"))
    return seen


def below(flow: Any, task_id: str) -> dict[str, Any]:
    """What the provider does for those who do not go through `flow.dev`."""
    remote = flow.provider.get_remote_operations()
    if sys.argv[1] == "register":
        from flow.api.models import TaskConfig, TaskStatus

        files = retrieved(remote, task_id)
    else:
        from flow.domain.models.enums import TaskStatus
        from flow.sdk.models import TaskConfig

        files = copied(flow, remote, task_id)
    other = {"instance_type": "h100", "command": "true"}
    told = tasks(flow, TaskConfig, TaskStatus, task_id, other)
    if sys.argv[1] != "register":
        config = TaskConfig(name="dev-other", env={"FLOW_DEV_VM": "true"}, **other)
        told["dry run"] = outcome(lambda: flow.provider.submit_task("h100", config, dryrun=True))
    return {"tasks": told, "commands": commands(remote, task_id), "files": files}


if __name__ == "__main__":
    sys.stderr.flush()
    answer = drive()
    print("SEEN " + json.dumps(answer, default=str))
