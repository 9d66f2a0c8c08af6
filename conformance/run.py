#!/usr/bin/env python3
"""Runs a public suite, or a small program over a public package, on a Slurm cluster of Testyard.

    conformance/run.py slurm-sdk                    # its whole integration suite, unmodified
    conformance/run.py slurm-sdk -- -k over_ssh     # what follows `--` goes to pytest
    conformance/run.py submitit
    conformance/run.py simple-slurm --cluster lab   # on a cluster that is there
    conformance/run.py speed                        # a test of slurm-sdk live, beside the same through its wheel

The program `testyard` is $TESTYARD_BINARY, that of this tree's target/debug, or the one on PATH. What is fetched from
the package registry is kept in target/conformance. Exits with 0 when all passed, with 77 where something cannot be
fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Iterator, Sequence

HERE = Path(__file__).resolve().parent
TREE = HERE.parent
SDK = ("slurm-sdk", "slurm_sdk", "0.4.6")
CLIENTS = {
    "submitit": "submitit_client.py",
    "simple-slurm": "simple_slurm_client.py",
    "dask-jobqueue": "dask_client.py",
}
#: Where slurm-sdk's suite looks for a cluster, unless it is told another port.
USUAL_PORT = 2222
CANNOT_FETCH = 77


class CannotFetch(Exception):
    """The package registry did not give it; pip has said why."""


def program() -> str:
    """The `testyard` under test."""
    built = TREE / "target" / "debug" / "testyard"
    found = os.environ.get("TESTYARD_BINARY") or (str(built) if built.exists() else shutil.which("testyard"))
    if not found:
        raise SystemExit("error: there is no testyard: cargo build, or install it")
    return found


def cache() -> Path:
    """Where fetched things are kept."""
    folder = Path(os.environ.get("TESTYARD_CONFORMANCE", TREE / "target" / "conformance"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def interpreter() -> str:
    """The Python with the public packages in it; made when first asked for."""
    given = os.environ.get("CONFORMANCE_PYTHON")
    if given:
        return given
    make = [sys.executable, str(TREE / "python" / "tools" / "environments.py"), "--folder", str(cache())]
    # Its first line is for people; ours is the path.
    done = subprocess.run([*make, "--programs", os.path.dirname(program()), "cluster"], stdout=sys.stderr)
    if done.returncode != 0:
        raise CannotFetch
    return str(cache() / "cluster" / "bin" / "python")


def pip(*arguments: str) -> None:
    """Raises CannotFetch where it fails."""
    if subprocess.call([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], stdout=sys.stderr):
        raise CannotFetch


def wheels() -> Path:
    """What a job installs that brings slurm-sdk along as a wheel, and what builds that wheel: nodes have no way out."""
    folder = cache() / "wheels"
    if not (folder / "complete").exists():
        pinned = str(TREE / "python" / "requirements" / "cluster.txt")
        wanted = [f"{SDK[0]}=={SDK[2]}", "hatchling", "editables"]
        pip("wheel", "--quiet", "--wheel-dir", str(folder), "--constraint", pinned, *wanted)
        (folder / "complete").touch()
    return folder


def sdk_source() -> Path:
    """The source distribution of slurm-sdk, as it was published."""
    name, stem, version = SDK
    folder = cache() / f"{stem}-{version}"
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        into = str(cache() / "source")
        pip("download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", into, f"{name}=={version}")
        with tarfile.open(cache() / "source" / f"{stem}-{version}.tar.gz") as archive:
            # Known by its version; older Pythons have no filters yet.
            if hasattr(tarfile, "data_filter"):
                archive.extractall(cache(), filter="data")
            else:
                archive.extractall(cache())
        (folder / ".complete").touch()
    return folder


def exposures(suite: str) -> list[str]:
    """What a cluster for this suite shows of this host."""
    from testyard import live

    shown = live.exposures(HERE / "clients")
    if suite == "speed":
        shown.append(f"{sdk_source()}:ro")
    return [*shown, f"{wheels()}:ro"] if suite in ("slurm-sdk", "speed") else shown


def run_client(cluster, suite: str) -> int:
    """Runs the small program of a package on the first node, in the Python that its jobs have."""
    from testyard import live

    source = live.place(cluster, HERE / "clients", sources=["."])
    script = HERE / "clients" / CLIENTS[suite]
    done = cluster.run([source.python, str(script)], env=source.env, check=False, timeout=300)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def prepare(cluster) -> dict[str, str]:
    """Tells the nodes where wheels are, and what jobs may do. The environment of those who submit."""
    # Each job installs a hundred modules of which it imports a few: none is compiled beforehand. This is how pip's
    # configuration says so, whose older versions take the value of such a key for that of the option's opposite.
    configuration = f"[global]\nno-index = true\nfind-links = {wheels()}\ndisable-pip-version-check = true\n"
    configuration += "[install]\nno-compile = false\n"
    for node in cluster.nodes:
        node.write_file("/etc/pip.conf", configuration, user="root")
    # Children of a workflow run where it waits for them: the suite tells the cluster that it starts itself the same.
    # Jobs ask for one minute, in which a host with much else to do installs no wheel.
    cluster.run("scontrol update PartitionName=debug OverSubscribe=YES OverTimeLimit=30", user="root")
    engine = cache() / "engine"
    engine.mkdir(exist_ok=True)
    shutil.copy(HERE / "docker.sh", engine / "docker")
    home = cache() / "home"
    (home / ".config" / "uv").mkdir(parents=True, exist_ok=True)
    (home / ".config" / "uv" / "uv.toml").write_text(f'no-index = true\nfind-links = ["{wheels()}"]\n')
    variables = {
        "PATH": f"{engine}:{os.path.dirname(sys.executable)}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels()),
        "CONFORMANCE_TESTYARD": program(),
        "CONFORMANCE_CLUSTER": cluster.name,
    }
    kept = {name: os.environ[name] for name in ("TESTYARD_HOME", "XDG_RUNTIME_DIR", "TMPDIR") if name in os.environ}
    return {**variables, **kept}


def run_sdk_suite(cluster, arguments: Sequence[str]) -> int:
    """Runs slurm-sdk's own integration suite against the cluster's SSH port."""
    variables = {**prepare(cluster), "SLURM_SDK_DEV_MODE": "host"}
    if cluster.ssh.port != USUAL_PORT:
        # How the suite is told of another place: as its own continuous integration does.
        variables.update(SLURM_SDK_DEV_MODE="ci", SLURM_HOST=cluster.ssh.host, SLURM_PORT=str(cluster.ssh.port))
    line = [sys.executable, "-m", "pytest", "--run-integration", "-ra", *(arguments or ["tests/integration"])]
    return subprocess.call(line, cwd=sdk_source(), env=variables)


def run_speed(cluster, rounds: int) -> int:
    """Prints what one test takes with the source of slurm-sdk live on the nodes, and through its wheel, by turns."""
    from testyard import live

    source = sdk_source()
    variables = prepare(cluster)
    live.place(cluster, source)
    taken: dict[str, list[float]] = {"none": [], "wheel": []}
    for _ in range(rounds):
        for packaging, seconds in taken.items():
            where = {**cluster.ssh._asdict(), "source": str(source / "src"), "packaging": packaging}
            line = [sys.executable, str(HERE / "clients" / "timed_job.py"), json.dumps(where)]
            done = subprocess.run(line, cwd=source, env=variables, stdout=subprocess.PIPE, text=True)
            if done.returncode != 0:
                return done.returncode
            seconds.append(float(done.stdout.split()[-1]))
    live_s, wheel_s = statistics.median(taken["none"]), statistics.median(taken["wheel"])
    print(f"one slurm-sdk integration test, median of {rounds}, s")
    print(f"  live source        {live_s:6.2f}   (goal 5)")
    print(f"  through its wheel  {wheel_s:6.2f}   ({wheel_s / live_s:.1f} times as long)")
    return 0


def clusters(suite: str, name: str | None) -> Iterator:
    """The cluster that is named, or one for this run alone."""
    from testyard import Cluster

    if name is not None:
        yield Cluster.get(name)
        return
    port = USUAL_PORT if suite == "slurm-sdk" else None
    wanted = {"nodes": 2, "cpus": 8, "memory": "8G", "user": "slurm", "password": "slurm", "ssh_port": port}
    with Cluster.create(expose=exposures(suite), hold=True, **wanted) as cluster:
        yield cluster


def main() -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["slurm-sdk", *CLIENTS, "speed"])
    parser.add_argument("--rounds", type=int, default=3, help="of speed [3]")
    parser.add_argument("--cluster", metavar="NAME", help="use this cluster, and leave it there")
    parser.add_argument("--show-exposures", action="store_true", help="only say what a cluster must be created with")
    words = sys.argv[1:]
    behind = words.index("--") if "--" in words else len(words)
    chosen, for_pytest = parser.parse_args(words[:behind]), words[behind + 1 :]
    try:
        python = interpreter()
        if os.environ.get("CONFORMANCE_INSIDE") != python:
            inside = {"CONFORMANCE_INSIDE": python, "CONFORMANCE_PYTHON": python, "TESTYARD_BINARY": program()}
            os.environ.update(inside, PYTHONPATH=str(TREE / "python" / "src"))
            os.execv(python, [python, str(Path(__file__).resolve()), *sys.argv[1:]])
        if chosen.show_exposures:
            print("\n".join(exposures(chosen.suite)))
            return 0
        for cluster in clusters(chosen.suite, chosen.cluster):
            if chosen.suite == "slurm-sdk":
                return run_sdk_suite(cluster, for_pytest)
            if chosen.suite == "speed":
                return run_speed(cluster, chosen.rounds)
            return run_client(cluster, chosen.suite)
    except CannotFetch:
        return CANNOT_FETCH
    return 1


if __name__ == "__main__":
    sys.exit(main())
