"""What reading a file may take, and a process of its own that ends where a file makes it take more.

The code under torch.load is not all safe from crafted files: some make it run without end, take all
memory or crash, where no exception can be caught. On Linux the kernel bounds it; elsewhere nothing
does.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINUX = sys.platform.startswith("linux")
if LINUX:
    import resource

SECONDS, BYTES = 10, 2**30  # of processor time and memory, for any file
SECONDS_A_BYTE, BYTES_A_BYTE = 1e-6, 4  # and as much for its size: a pickle is read at 1 MB/s or so


@contextmanager
def limits(size: int) -> Iterator[None]:
    """Bounds what opening a file of this size may take from here on.

    More memory is a MemoryError or whatever the allocator raises; more time ends the process.
    """
    if not LINUX:
        yield
        return
    times = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[5])  # of data, which RLIMIT_DATA counts
    wanted = {
        resource.RLIMIT_CPU: times.ru_utime + times.ru_stime + SECONDS + SECONDS_A_BYTE * size,
        resource.RLIMIT_DATA: pages * resource.getpagesize() + BYTES + BYTES_A_BYTE * size,
    }
    before = {what: resource.getrlimit(what) for what in wanted}
    try:
        for what, limit in wanted.items():
            stricter = [old for old in before[what] if old != resource.RLIM_INFINITY]
            resource.setrlimit(what, (min([math.ceil(limit), *stricter]), before[what][1]))
        yield
    finally:
        for what, old in before.items():
            resource.setrlimit(what, old)


def in_a_process(work: Callable[[], int]) -> int:
    """The exit status of work() in a child process; negative, the signal that ended the child."""
    if not LINUX:
        return work()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(work,))
    child.start()
    child.join()
    return child.exitcode or 0


def _child(work):
    PR_SET_PDEATHSIG = 1  # the child does not outlive a parent that is killed
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(work())
