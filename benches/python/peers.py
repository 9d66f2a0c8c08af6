"""Podman, the peer of an environment for each test: a container of one program of the host's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from measure import NotHere, must_work

PAYLOAD = "/bin/true"
# podman refuses hosts with both versions of control groups: it runs in a mount namespace without the second.
WITHOUT_V2 = 'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"'
# Raising hard limits is not everybody's to do.
LIMITS = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'


def podman_run(folder: Path) -> list[str]:
    """The command of one `podman run` of the payload, tried once. Raises `NotHere` where podman does not work."""
    if shutil.which("podman") is None:
        raise NotHere("podman is not installed")
    root = folder / "rootfs"
    for name in ("etc", "proc", "sys", "dev", "tmp", "run", "usr"):
        (root / name).mkdir(parents=True, exist_ok=True)
    listed = subprocess.run(["ldd", PAYLOAD], capture_output=True, text=True, check=False).stdout
    for path in [word for word in listed.split() if word.startswith("/")] + [PAYLOAD]:
        to = root / path.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    (folder / "containers.conf").write_text(LIMITS)
    command = ["env", f"CONTAINERS_CONF={folder / 'containers.conf'}", "podman", "run", "--rm", "--network=none"]
    command += ["--rootfs", f"{root}:O", PAYLOAD]
    if Path("/sys/fs/cgroup/unified/cgroup.controllers").exists():
        command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", WITHOUT_V2, "sh", *command]
    must_work(command)
    return command
