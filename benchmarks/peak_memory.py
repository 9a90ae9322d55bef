"""Peak memory of a piece of code on the CPU, counted from the allocations that torch makes."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], Any]) -> int:
    """Most bytes of CPU tensors alive at a time that `function` allocated itself, its result included.

    Counts every tensor, scratch memory inside operators too (what math libraries allocate on their own is not seen).
    Exact, so the same at every call, on a busy machine too.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = function()
    del result
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        now += change
        peak = max(peak, now)
    return peak
