"""simple-slurm on a login node: submits, waits by dependency, reads a result, runs a step, cancels."""

import os
import subprocess
import tempfile
import time

from simple_slurm import Slurm


def main():
    folder = tempfile.mkdtemp(dir=os.path.expanduser("~"))
    common = {"partition": "debug", "mem": "100M", "time": "00:05:00"}
    output = f"{folder}/{Slurm.JOB_ARRAY_MASTER_ID}_{Slurm.JOB_ARRAY_ID}.out"
    array = Slurm(job_name="array", array=range(1, 4), output=output, **common)
    first = array.sbatch("echo number $SLURM_ARRAY_TASK_ID on $(hostname)", shell="/bin/bash")
    last = Slurm(job_name="last", output=f"{folder}/last.out", dependency={"afterok": first}, wait=True, **common)
    # With `wait`, this returns when the job has ended, and it begins when the array has.
    last.sbatch(f"cat {folder}/{first}_*.out", shell="/bin/bash")
    with open(f"{folder}/last.out") as file:
        lines = sorted(file.read().splitlines())
    assert [line.rsplit(" on ", 1)[0] for line in lines] == ["number 1", "number 2", "number 3"], lines
    assert Slurm(ntasks=2, **common).srun("true") == 0
    waiting = Slurm(job_name="waiting", output="/dev/null", **common).sbatch("sleep 600", shell="/bin/bash")
    subprocess.run(["scancel", str(waiting)], check=True)
    until = time.monotonic() + 60
    while str(waiting) in subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True).stdout.split():
        assert time.monotonic() < until, "it was not cancelled"
        time.sleep(0.1)
    print("simple-slurm: an array, a job after it, a step and a cancelled job")


if __name__ == "__main__":
    main()
