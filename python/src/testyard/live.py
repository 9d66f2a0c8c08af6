"""Live source on a cluster: what its jobs import is the working tree of this process, as it is at that moment.

    with testyard.Cluster.create(expose=live.exposures(".")) as cluster:
        source = live.place(cluster, ".")
        cluster.run("python -c 'import mine'")

Jobs, the workflows they run, and children that those submit by SSH get the same Python environment, because it is what
a login and a submission have. See `docs/clusters-python.md`."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import shlex
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Iterable, Mapping, NamedTuple, Optional, Sequence

from ._place import Path
from .errors import InfrastructureError, InvalidInput, NotSupported

if TYPE_CHECKING:
    from .cluster import Cluster
    from .machine import Machine

#: How the source comes to the nodes: the tree itself, a copy that is brought up to date, a wheel, or not at all.
MODES = ("bind", "sync", "wheel", "none")
#: The interpreter of the nodes.
PYTHON = "/usr/bin/python3"
_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOOK = "_testyard_live"


class LiveSource(NamedTuple):
    """A working tree as a cluster's Python has it."""

    #: The cluster.
    cluster: Cluster
    #: `bind`, `sync`, `wheel` or `none`.
    mode: str
    #: The working tree, at the same path here and on every node.
    tree: str
    #: The interpreter that jobs have as `python`.
    python: str
    #: What logins and jobs find in their environment.
    env: Mapping[str, str]

    def refresh(self) -> LiveSource:
        """Brings the cluster up to date: nothing to do with `bind` and `none`, what changed is sent with `sync`, and
        with `wheel` one is built and installed."""
        if self.mode in ("bind", "none"):
            return self
        return place(self.cluster, self.tree, mode=self.mode, python=self.python)


def exposures(tree: Path, mode: str = "bind") -> list[str]:
    """What a cluster must show of this host for that mode, for `Cluster.create(expose=…)`.

    Raises InvalidInput where there is no such tree or mode."""
    folder = _tree(tree, mode)
    if mode == "none":
        return []
    shown = [folder] if mode == "bind" else []
    for packages in client_packages():
        if not _covers(shown, packages):
            shown.append(packages)
    return [f"{path}:ro" for path in shown]


def client_packages() -> list[str]:
    """The folders that this interpreter's installed packages are in."""
    found = []
    for entry in sys.path:
        path = os.path.realpath(entry) if entry else ""
        if os.path.basename(path) in ("site-packages", "dist-packages") and os.path.isdir(path) and path not in found:
            found.append(path)
    return found


def place(
    cluster: Cluster,
    tree: Path = ".",
    *,
    mode: str = "bind",
    sources: Optional[Sequence[Path]] = None,
    python: str = PYTHON,
) -> LiveSource:
    """Makes a working tree importable on all nodes of a cluster, and its environment that of every login and job.

    `sources` are the folders of the tree that Python's path begins with: `src` where there is one, else the tree.
    Packages that the tree needs are this interpreter's own. Raises InvalidInput (no such tree, no such mode, a cluster
    that was not created with `exposures`), NotSupported (its Python is another version than this one)."""
    folder = _tree(tree, mode)
    if mode == "none":
        return LiveSource(cluster, mode, folder, python, {})
    named = [os.path.join(folder, os.fspath(one)) for one in sources or _usual_sources(folder)]
    for one in named:
        if not os.path.isdir(one):
            raise InvalidInput(f"{one} is no folder to import from")
    if mode == "bind":
        _must_show(cluster, [folder])
    _check_version(cluster, python)
    packages = _packages(cluster)
    if mode == "sync":
        _send(cluster, folder)
    told: dict[str, Any] = {
        "tree": folder if mode != "wheel" else None,
        "sources": named if mode != "wheel" else [],
        "packages": packages,
    }
    environment = _environment(cluster, mode, told, python)
    if mode == "wheel":
        _install_wheel(cluster, folder, environment)
    env = {
        "VIRTUAL_ENV": environment,
        "PY_EXEC": f"{environment}/bin/python",
        "PATH": f"{environment}/bin:{_USUAL_PATH}",
    }
    reached = [folder, *packages] if mode != "wheel" else packages
    for node in cluster.nodes:
        _open_way(node, reached)
    _tell_logins(cluster, env)
    _check_read(cluster, [*told["sources"], *packages])
    return LiveSource(cluster, mode, folder, f"{environment}/bin/python", env)


def _tree(tree: Path, mode: str) -> str:
    if mode not in MODES:
        raise InvalidInput(f"{mode!r} is no mode", hints=[f"choose one of {', '.join(MODES)}"])
    folder = os.path.realpath(os.fspath(tree))
    if not os.path.isdir(folder):
        raise InvalidInput(f"there is no working tree at {folder}")
    if folder == "/":
        raise InvalidInput("the root of this host is no working tree", hints=["name the project's own folder"])
    return folder


def _usual_sources(folder: str) -> list[str]:
    return ["src"] if os.path.isdir(os.path.join(folder, "src")) else ["."]


def _covers(shown: Iterable[str], path: str) -> bool:
    return any(path == one or path.startswith(one.rstrip("/") + "/") for one in shown)


def _shown(cluster: Cluster) -> list[str]:
    """Folders of this host that the cluster shows as they are."""
    return [one.rsplit(":", 1)[0] for one in cluster._info.expose if one.endswith((":ro", ":rw"))]


def _must_show(cluster: Cluster, folders: Iterable[str]) -> None:
    for folder in folders:
        if not _covers(_shown(cluster), folder):
            raise InvalidInput(
                f"cluster {cluster.name} does not show {folder}",
                hints=[
                    f"create it with --expose {shlex.quote(folder)}:ro, or in Python expose=live.exposures(tree)",
                    "or use mode sync",
                ],
            )


def _check_version(cluster: Cluster, python: str) -> None:
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    there = cluster.run([python, "-c", say]).stdout.strip()
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if there != here:
        raise NotSupported(
            f"the nodes' {python} is Python {there}, and this is {here}: packages of one do not work in the other",
            hints=[f"run this with Python {there}, or name an interpreter of the nodes: python="],
        )


def _packages(cluster: Cluster) -> list[str]:
    """Where the nodes find this interpreter's packages: where they are, or in a copy that all nodes share."""
    folders = []
    for folder in client_packages():
        if _covers(_shown(cluster), folder):
            folders.append(folder)
            continue
        names = sorted(os.listdir(folder))
        digest = hashlib.sha256("\n".join([folder, *names]).encode()).hexdigest()[:16]
        copy = f"{_base(cluster)}/packages-{digest}"
        if cluster.run(["test", "-e", f"{copy}/.complete"], check=False).returncode != 0:
            cluster.run(["mkdir", "-p", copy])
            cluster.head.push(f"{folder}/.", copy, user=cluster.user)
            cluster.run(["touch", f"{copy}/.complete"])
        folders.append(copy)
    return folders


def _base(cluster: Cluster) -> str:
    return f"/home/{cluster.user}/.testyard"


def _environment(cluster: Cluster, mode: str, told: Mapping[str, Any], python: str) -> str:
    """A virtual environment that all nodes share, made once for what it is to hold. Its path."""
    with open(os.path.join(os.path.dirname(__file__), "_live_hook.py"), encoding="utf-8") as file:
        hook = file.read()
    text = json.dumps(told, indent=1, sort_keys=True)
    digest = hashlib.sha256("\n".join([mode, python, hook, text]).encode()).hexdigest()[:16]
    folder = f"{_base(cluster)}/{mode}-{digest}"
    made = f"{folder}/.complete"
    if cluster.run(["test", "-e", made], check=False).returncode == 0:
        return folder
    without = "" if mode == "wheel" else "--without-pip"
    # Whoever comes second at the same time waits, and finds it made.
    script = f"""
        set -eu
        test ! -e {made} || exit 0
        rm -rf {folder}
        {shlex.quote(python)} -m venv {without} {folder}
        packages=$(echo {folder}/lib/python3*/site-packages)
        printf %s "$HOOK" > $packages/{_HOOK}.py
        printf %s "$TOLD" > $packages/{_HOOK}.json
        echo 'import {_HOOK}; {_HOOK}.install()' > $packages/{_HOOK}.pth
        {folder}/bin/python -c 'import {_HOOK}'
        touch {made}
    """
    cluster.run(["mkdir", "-p", _base(cluster)])
    cluster.run(["flock", f"{_base(cluster)}/lock", "sh", "-c", script], env={"HOOK": hook, "TOLD": text})
    return folder


def _open_way(node: Machine, paths: Iterable[str]) -> None:
    """Lets everybody on the node pass through the folders above, which are its own: homes are closed to others."""
    above = {posixpath.dirname(path) for path in paths}
    for path in list(above):
        while path != "/":
            above.add(path)
            path = posixpath.dirname(path)
    above.discard("/")
    # Those that are shown as they are cannot be changed, nor need be: they are checked below.
    script = 'for folder; do chmod o+x -- "$folder" 2>/dev/null || true; done'
    node.run(["sh", "-c", script, "sh", *sorted(above)], user="root", cwd="/")


def _check_read(cluster: Cluster, paths: Sequence[str]) -> None:
    script = 'for path; do test -r "$path" -a -x "$path" || { echo "$path"; exit 1; }; done'
    for node in cluster.nodes:
        done = node.run(["sh", "-c", script, "sh", *paths], user=cluster.user, check=False, cwd="/")
        if done.returncode != 0:
            path = done.stdout.strip() or paths[0]
            raise InvalidInput(
                f"user {cluster.user} cannot read {path} on {node.name}",
                hints=[f"let others read it: chmod -R o+rX {shlex.quote(path)}"],
            )


def _tell_logins(cluster: Cluster, env: Mapping[str, str]) -> None:
    """Writes what every login, and so every job that is submitted there, has in its environment; on all nodes, because
    they share homes."""
    folder = f"/home/{cluster.user}/.ssh"
    path = f"{folder}/environment"
    script = f"umask 077; mkdir -p {folder}; cat {path} 2>/dev/null || true"
    before = cluster.run(["sh", "-c", script]).stdout
    kept = [line for line in before.splitlines() if line.split("=", 1)[0].strip() not in env]
    lines = [*kept, *(f"{name}={value}" for name, value in env.items())]
    cluster.head.write_file(path, "\n".join(lines) + "\n", mode=0o600, user=cluster.user)


def _send(cluster: Cluster, tree: str) -> None:
    """Brings the copies of the tree on all nodes up to date, at its own path."""
    from . import _binary

    for node in cluster.nodes:
        _binary.call(["sync", node.name, tree])


def _install_wheel(cluster: Cluster, tree: str, environment: str) -> None:
    with tempfile.TemporaryDirectory(prefix="testyard-wheel-") as scratch:
        line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", scratch, tree]
        built = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = [name for name in os.listdir(scratch) if name.endswith(".whl")]
        if built.returncode != 0 or len(wheels) != 1:
            raise InfrastructureError(f"no wheel can be built of {tree}", causes=built.stderr.strip().splitlines()[-3:])
        there = f"{_base(cluster)}/{wheels[0]}"
        cluster.head.push(os.path.join(scratch, wheels[0]), there, user=cluster.user)
    install = [f"{environment}/bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    cluster.run(["flock", f"{_base(cluster)}/lock", *install, "--force-reinstall", there])
