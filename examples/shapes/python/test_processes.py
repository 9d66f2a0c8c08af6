"""Processes that a test leaves behind end with its environment."""

import os
import subprocess


def test_sees_few_processes():
    processes = [name for name in os.listdir("/proc") if name.isdigit()]
    assert len(processes) < 10


def test_may_leave_a_daemon():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
