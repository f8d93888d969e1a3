"""The team of threads that work is shared among."""

from __future__ import annotations

import subprocess
import sys

FORK = """
import os, signal, sys
import numpy as np
import saddlepoint as sp
from saddlepoint import vector

sp.set_num_threads(2)
x = np.ones(1_000_000)
assert vector.dot(x, x) == len(x)  # OpenMP's threads are there from now on
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(int(vector.dot(x, x) != len(x)))
assert os.waitpid(child, 0)[1] == 0
assert vector.dot(x, x) == len(x)
"""


def test_a_forked_child_does_not_wait_for_its_parents_threads() -> None:
    run = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
