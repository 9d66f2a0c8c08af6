"""One integration test of slurm-sdk, timed: submits over SSH, waits, reads the result. What its `test_submit_job_over_ssh`
does, looking for the end of the job four times a second in place of every five seconds."""

import json
import sys
import tempfile
import time
from pathlib import Path

from slurmfile import SLURMFILE


def main():
    where = json.loads(sys.argv[1])
    sys.path.insert(0, where["source"])
    from slurm.cluster import Cluster
    from slurm.examples.integration_test_task import simple_integration_task

    assert simple_integration_task.func.__code__.co_filename.startswith(where["source"])
    with tempfile.TemporaryDirectory() as folder:
        slurmfile = Path(folder, "Slurmfile.toml")
        slurmfile.write_text(SLURMFILE.format(**where))
        begun = time.monotonic()
        cluster = Cluster.from_env(slurmfile, env="default")
        job = cluster.submit(simple_integration_task)()
        if not job.wait(timeout=400, poll_interval=0.25):
            print(cluster.backend.execute_command(f"cat {job.stdout_path} {job.stderr_path}"), file=sys.stderr)
            raise SystemExit(f"the job failed: {job.get_status()}")
        assert job.get_result() == "integration-ok"
        print(time.monotonic() - begun)


if __name__ == "__main__":
    main()
