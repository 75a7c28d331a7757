"""Counts summed over two real processes."""

import socket
import subprocess
import sys

PROGRAM = """
import sys
import jax, numpy as np
jax.distributed.initialize("127.0.0.1:" + sys.argv[2], 2, int(sys.argv[1]))
from fi_jax.knowledge.correlation import Counts, sum_over_hosts
me = jax.process_index()
# More than 32 bits, so that halves carry.
own = Counts(*(np.full((2, 2), (me + 1) * (2**32 - 1) + i, np.int64) for i in range(3)))
total = sum_over_hosts(own)
assert all(part.dtype == np.int64 and (part == 3 * (2**32 - 1) + 2 * i).all() for i, part in enumerate(total)), total
print("same")
"""


def test_counts_add_up_over_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", PROGRAM]
    workers = [
        subprocess.Popen([*command, str(i), port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        for worker in workers:
            out, error = worker.communicate(timeout=120)
            assert worker.returncode == 0 and out.strip().endswith("same"), error
    finally:
        for worker in workers:
            worker.kill()
