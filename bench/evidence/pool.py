"""The runs, some at a time, in processes of their own.

Each has one thread: convolutions of this size gain little by a second one, and a run gives the same
numbers again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from .data import get
from .journal import Refused
from .run import run
from .settings import Setting


def run_all(
    settings: list[Setting], given: str | None, workers: int
) -> Iterator[tuple[Setting, dict]]:
    """Each with what was found, as they end; `given` is --data, which every process reads."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(workers, context, _begin, (given,))
    try:
        waiting = {pool.submit(_work, each): each for each in settings}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        why = "a process was ended from outside, perhaps for its memory: --resume goes on"
        raise Refused(why) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():  # not after the runs that they are at
            process.terminate()


def _begin(given):
    global data
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of ^C the parent hears, and ends them
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    data = get(given)


def _end_with_parent():
    """Otherwise they wait for work of one that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(setting):
    return run(setting, data)
