"""dask-jobqueue on a login node: workers as jobs, results of theirs, an error, and jobs that go with their cluster."""

import os
import socket
import subprocess
import sys
import tempfile
import time

from dask.distributed import Client
from dask_jobqueue import SLURMCluster


def where(number):
    return number * 2, socket.gethostname(), os.environ["SLURM_JOB_ID"]


def fail():
    raise ValueError("on purpose")


def queued():
    listed = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def main():
    folder = tempfile.mkdtemp(dir=os.path.expanduser("~"))
    before = queued()
    workers = SLURMCluster(
        queue="debug", cores=1, processes=1, memory="512MB", walltime="00:05:00", python=sys.executable,
        local_directory=folder, log_directory=folder, scheduler_options={"dashboard": False},
    )  # fmt: skip
    with workers, Client(workers) as client:
        workers.scale(jobs=2)
        client.wait_for_workers(2, timeout=120)
        assert len(queued() - before) == 2
        answers = client.gather(client.map(where, range(20)))
        assert [number for number, _, _ in answers] == list(range(0, 40, 2))
        try:
            client.submit(fail).result()
        except ValueError as error:
            assert "on purpose" in str(error)
        else:
            raise AssertionError("an error came back as a result")
        jobs = {job for _, _, job in answers}
    # The jobs are cancelled with the cluster.
    until = time.monotonic() + 60
    while queued() - before:
        assert time.monotonic() < until, "workers are left"
        time.sleep(0.1)
    print(f"dask-jobqueue: 20 results of {len(jobs)} jobs, an error, and no job left")


if __name__ == "__main__":
    main()
