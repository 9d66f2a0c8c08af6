"""Submits tasks of the package `fresh` through slurm-sdk, waits, prints their results. Run by a Python that has it."""

import json
import sys
import tempfile
from pathlib import Path

from slurm.cluster import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "conformance" / "clients"))

from slurmfile import SLURMFILE  # noqa: E402 - found by the line above


def main():
    where = json.loads(sys.argv[1])
    sys.path.insert(0, where["source"])
    from fresh import tasks

    with tempfile.TemporaryDirectory() as folder:
        slurmfile = Path(folder, "Slurmfile.toml")
        slurmfile.write_text(SLURMFILE.format(packaging="none", **where))
        cluster = Cluster.from_env(slurmfile, env="default")
        results = {}
        for name in sys.argv[2:]:
            job = cluster.submit(getattr(tasks, name))()
            if name in tasks.HELD:
                cluster.backend.execute_command(f"scontrol release {job.id}")
            if not job.wait(timeout=100, poll_interval=0.25):
                print(cluster.backend.execute_command(f"cat {job.stdout_path} {job.stderr_path}"))
                raise SystemExit(f"{name}: {job.get_status()}")
            results[name] = job.get_result()
    print(json.dumps(results))


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
