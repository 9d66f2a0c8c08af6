"""Live source on a cluster: what its jobs import is the working tree of this process, as it is at that moment.

    with testyard.Cluster.create(expose=live.exposures(".")) as cluster:
        source = live.place(cluster, ".")
        cluster.run("python -c 'import mine'", env=source.env)

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

from . import _given as given
from ._place import Path
from ._trees import local_error
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
    #: The folders of the tree that Python's path begins with, as `place` was told them.
    sources: Optional[Sequence[Path]] = None
    #: The nodes' interpreter that `python` is made of.
    base: str = PYTHON

    def refresh(self) -> LiveSource:
        """Brings the cluster up to date, with nodes that came since: what changed is sent with `sync`, a wheel is built
        and installed with `wheel`, and packages are copied anew where the cluster has copies. A tree of `bind` is
        current without it. `python` and `env` stay what they are."""
        if self.mode == "none":
            return self
        self.cluster.info()
        return place(self.cluster, self.tree, mode=self.mode, sources=self.sources, python=self.base)


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
    that was not created with `exposures`), NotSupported (its Python is another version than this one),
    InfrastructureError (no wheel can be built)."""
    folder = _tree(tree, mode)
    named = [os.path.normpath(os.path.join(folder, given.path(one))) for one in sources or _usual_sources(folder)]
    if not hasattr(type(cluster), "nodes"):
        raise given.refused(cluster, "cluster", "give a testyard.Cluster: testyard.Cluster.get(…)")
    if mode == "none":
        return LiveSource(cluster, mode, folder, python, {}, sources, python)
    for one in named:
        if not os.path.isdir(one):
            raise InvalidInput(f"{one} is no folder to import from")
    if mode == "bind":
        _must_show(cluster, [folder])
    _check_version(cluster, python)
    with tempfile.TemporaryDirectory(prefix="testyard-wheel-") as scratch:
        wheel = _wheel(folder, scratch) if mode == "wheel" else None
        environment, reached, read = _filled(cluster, mode, folder, named, python, wheel)
    env = {
        "VIRTUAL_ENV": environment,
        "PY_EXEC": f"{environment}/bin/python",
        "PATH": f"{environment}/bin:{_USUAL_PATH}",
    }
    for node in cluster.nodes:
        _open_way(node, reached)
    _tell_logins(cluster, env)
    _check_read(cluster, read)
    return LiveSource(cluster, mode, folder, f"{environment}/bin/python", env, sources, python)


def _filled(
    cluster: Cluster, mode: str, folder: str, named: Sequence[str], python: str, wheel: Optional[str]
) -> tuple[str, list[str], list[str]]:
    """The environment, with all that it leads to; then what users must reach on each node, and what they must read."""
    packages = _packages(cluster)
    if mode == "sync":
        _send(cluster, folder)
    sources = list(named) if wheel is None else []
    told: dict[str, Any] = {"tree": folder if wheel is None else None, "sources": sources, "packages": packages}
    environment = _environment(cluster, mode, told, python)
    if wheel is not None:
        _install(cluster, wheel, environment)
    return environment, [folder, *packages] if wheel is None else packages, [*sources, *packages]


def _tree(tree: Path, mode: str) -> str:
    if mode not in MODES:
        raise InvalidInput(f"{mode!r} is no mode", hints=[f"choose one of {', '.join(MODES)}"])
    folder = os.path.realpath(given.path(tree, "working tree"))
    if not os.path.isdir(folder):
        raise InvalidInput(f"there is no working tree at {folder}", hints=["name the project's folder"])
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
    shown = _shown(cluster)
    return [folder if _covers(shown, folder) else _copied(cluster, folder) for folder in client_packages()]


def _copied(cluster: Cluster, folder: str) -> str:
    """The path of a copy of a folder of packages, which is made anew where anything in the folder is another."""
    there = f"{_base(cluster)}/packages-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    digest = _digest(folder)
    # Beside the path, which is a link: jobs see one copy or the other, whole.
    fresh = f"{os.path.basename(there)}.{digest}.{os.urandom(4).hex()}"
    script = """
        set -eu
        cd "$1"
        old=$(readlink "$2" || true)
        case "$old" in "$2.$3".*) rm -rf "$4"; exit 0;; esac
        test -d "$4" || exit 1
        ln -s "$4" "$4.link"
        mv -T "$4.link" "$2"
        test -z "$old" || rm -rf "$old"
    """
    switch = ["flock", f"{_base(cluster)}/lock", "sh", "-c", script, "sh"]
    switch += [_base(cluster), os.path.basename(there), digest, fresh]
    cluster.run(["mkdir", "-p", _base(cluster)])
    if cluster.run(switch, check=False).returncode != 0:
        cluster.run(["mkdir", f"{_base(cluster)}/{fresh}"])
        cluster.head.push(f"{folder}/.", f"{_base(cluster)}/{fresh}", user=cluster.user)
        cluster.run(switch)
    return there


def _digest(folder: str) -> str:
    """What tells a folder of packages from what it was: each file's name, size and time. Compiled modules follow from
    their sources, and come into being as these are imported."""
    found = hashlib.sha256()
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as listed:
                seen = [(entry, entry.stat(follow_symlinks=False)) for entry in listed if entry.name != "__pycache__"]
        except OSError as error:
            raise local_error(error, error.filename or folder) from None
        for entry, facts in sorted(seen, key=lambda one: one[0].name):
            found.update(os.fsencode(f"{entry.path}\0{facts.st_mode}\0"))
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                found.update(b"%d\0%d\0" % (facts.st_size, facts.st_mtime_ns))
    return found.hexdigest()[:16]


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


def _wheel(tree: str, into: str) -> str:
    """The path of the wheel that is built of the tree, in a folder that is there."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    built = subprocess.run([*pip, "--wheel-dir", into, tree], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = [name for name in os.listdir(into) if name.endswith(".whl")]
    if built.returncode != 0 or len(wheels) != 1:
        raise InfrastructureError(f"no wheel can be built of {tree}", causes=built.stderr.strip().splitlines()[-3:])
    return os.path.join(into, wheels[0])


def _install(cluster: Cluster, wheel: str, environment: str) -> None:
    # Of this call alone: another may be installing one of the same name.
    folder = f"{_base(cluster)}/built-{os.urandom(4).hex()}"
    cluster.run(["mkdir", folder])
    try:
        cluster.head.push(wheel, folder, user=cluster.user)
        pip = [f"{environment}/bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        install = [*pip, "--disable-pip-version-check", "--force-reinstall", f"{folder}/{os.path.basename(wheel)}"]
        cluster.run(["flock", f"{_base(cluster)}/lock", *install])
    finally:
        cluster.run(["rm", "-rf", folder])
