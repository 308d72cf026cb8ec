"""How a time is taken on a GPU: the kernels' and the host's, apart.

Kernel time: a CUDA graph of calls on several clones of the weights in turn, replayed between two
events. A graph has no gaps in which the GPU waits for the host, and the clones together are at
least FLUSH times as large as the L2 cache, so that each call finds its weight in memory, as it
does after a training step has gone over the activations. A graph holds so many calls that its own
launch does not count. What cannot be captured is timed as the same calls in a row, and its method
says so: there the gaps count.

Host time: the calls in a row without waiting for the GPU, few enough for the queue to take them.

Rounds are interleaved and medians taken as in timing.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from .timing import Call, Timing, interleave

FLUSH = 3
MAX_SETS = 256  # smaller weights stay in the L2 cache: their time is the launch's anyway
GRAPH_CALLS = 16  # at least, in a graph: launching it costs microseconds
HOST_CALLS = 16  # of some ten launches each: few enough for the queue's 1024
SAMPLE_SECONDS = 2e-3


def sets_needed(bytes_: int) -> int:
    """Sets of inputs, each of so many bytes, that keep each out of the L2 cache until its turn."""
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    return min(MAX_SETS, max(2, math.ceil(FLUSH * l2_bytes / bytes_)))


def measure(
    calls: dict[str, list[Call]], seconds: float
) -> tuple[dict[str, Timing], dict[str, Timing], dict[str, str]]:
    """Kernel times, host times and the method of each provider, from its calls on every set."""
    rounds = math.ceil(GRAPH_CALLS / min(len(sets) for sets in calls.values()))
    replays, methods = {}, {}
    for name, sets in calls.items():
        replays[name], methods[name] = _capture(sets, rounds)
    batches = {name: _choose_batch(replay) for name, replay in replays.items()}
    kernel = interleave(
        {
            name: lambda replay=replay, name=name: _events(replay, batches[name])
            for name, replay in replays.items()
        },
        seconds / 2,
    )
    host = interleave(
        {name: lambda sets=sets: _host(sets) for name, sets in calls.items()}, seconds / 2
    )
    in_replay = {name: rounds * len(sets) for name, sets in calls.items()}
    per_call = {name: [t / in_replay[name] for t in times] for name, times in kernel.items()}
    return (
        {name: Timing.of(per_call[name], batches[name] * in_replay[name]) for name in calls},
        {name: Timing.of(host[name], _host_calls(sets)) for name, sets in calls.items()},
        methods,
    )


def _capture(sets: list[Call], rounds: int) -> tuple[Callable[[], None], str]:
    """A function that goes `rounds` times over all sets, as a graph where that is possible."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in sets[:3]:  # compiles, chooses algorithms and allocates, outside of the graph
            call.run(call.prepare())
        # A backward runs on its forward's stream, so what it needs is prepared on this one.
        states = [call.prepare() for call in sets]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            # a round's results stay alive, so that each of its calls writes to memory of its own
            for _ in range(rounds):
                results = [call.run(state) for call, state in zip(sets, states, strict=True)]
    except RuntimeError:
        torch.cuda.synchronize()
        states = [call.prepare() for call in sets]

        def run_in_a_row():
            for _ in range(rounds):
                for call, state in zip(sets, states, strict=True):
                    call.run(state)

        return run_in_a_row, "events"

    keep_alive = (states, results)  # the graph holds their addresses, not them

    def replay(_=keep_alive):
        graph.replay()

    return replay, "graph"


def _events(replay: Callable[[], None], batch: int) -> float:
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(batch):
        replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / batch


def _choose_batch(replay: Callable[[], None]) -> int:
    _events(replay, 1)
    fastest = min(_events(replay, 1) for _ in range(3))
    return max(1, math.ceil(SAMPLE_SECONDS / fastest))


def _host_calls(sets: list[Call]) -> int:
    return min(HOST_CALLS, len(sets))  # a whole model has few sets, and many launches a call


def _host(sets: list[Call]) -> float:
    sets = sets[: _host_calls(sets)]
    states = [call.prepare() for call in sets]
    torch.cuda.synchronize()
    start = time.perf_counter()
    for call, state in zip(sets, states, strict=True):
        call.run(state)
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return seconds / len(sets)
