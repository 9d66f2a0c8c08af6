"""submitit on a login node: submits, waits, reads a result, an array and an error, cancels."""

import os
import socket
import subprocess
import tempfile
import time

import submitit


def answer(seconds, number):
    time.sleep(seconds)
    return number * 2, socket.gethostname()


def fail():
    raise ValueError("on purpose")


def main():
    folder = tempfile.mkdtemp(dir=os.path.expanduser("~"))
    executor = submitit.AutoExecutor(folder=folder)
    assert executor.cluster == "slurm", executor.cluster
    executor.update_parameters(timeout_min=5, mem_gb=0.25, cpus_per_task=1, slurm_partition="debug")
    job = executor.submit(answer, 0, 21)
    number, host = job.result()
    assert number == 42, number
    jobs = executor.map_array(answer, [0] * 4, range(4))
    assert [one.result()[0] for one in jobs] == [0, 2, 4, 6]
    failing = executor.submit(fail)
    assert "on purpose" in str(failing.exception())
    waiting = executor.submit(answer, 600, 1)
    waiting.cancel()
    until = time.monotonic() + 60
    while job_state(waiting.job_id) not in ("CANCELLED", "COMPLETING"):
        assert time.monotonic() < until, "it was not cancelled"
        time.sleep(0.1)
    print(f"submitit {submitit.__version__}: a result, an array, an error and a cancelled job on {host}")


def job_state(job):
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return shown.split("JobState=")[1].split()[0]


if __name__ == "__main__":
    main()
