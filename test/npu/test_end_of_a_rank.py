"""A rank on a CPU ends although a thread of gloo still frees a tensor; in this stack's torch that could hang."""

from __future__ import annotations

import subprocess
import sys

# The tensor of a collective that nobody waits for is freed by gloo's thread, slowly, and for that the thread needs the
# interpreter's lock.
RANK = """
import threading, time
import torch
import torch.distributed as dist
from recipe.engine import termination

freeing = threading.Event()

class Slow(torch.Tensor):
    def __del__(self):
        if threading.current_thread() is not threading.main_thread():
            freeing.set()
            time.sleep(1)

dist.init_process_group('gloo', rank=0, world_size=1, store=dist.HashStore())
while not freeing.wait(0.01):
    dist.all_reduce(torch.zeros(100_000).as_subclass(Slow), async_op=True)
print('all work is done', flush=True)
termination.leave()
"""


def test_it_waits_for_no_thread_that_waits_for_it():
    done = subprocess.run([sys.executable, '-c', RANK], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == 'all work is done'  # newer gloo says before it who is connected
