"""Work on a GPU recorded once and replayed without the host: a CUDA graph.

In:  a call without arguments, whose tensors stay where they are.   Out: the graph, and what the call returned.
Knows nothing of what the call does.
"""

import warnings
from collections.abc import Callable

import torch

from catseg.device import reset_peak_memory

NUM_WARMUPS = 3  # calls before the recording: libraries choose their kernels, an optimizer makes its state


def capture(work: Callable[[], torch.Tensor], device: torch.device) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Call `work` three times, then record it; `graph.replay()` does it again and fills the same result.

    As PyTorch's notes on CUDA graphs demand: warmed up on a stream of its own, no work that waits for
    the host (no GradScaler, no `.item()`), no Python that must run again (a schedule of learning
    rates; write into a learning rate that is a tensor instead). Gradients must be None before `work`
    makes them, so that they lie in the graph's memory. Peak memory is measured anew from the
    recording on: the warm-up's search for algorithms is not in it.
    """
    stream = torch.cuda.current_stream(device)
    side = torch.cuda.Stream(device)
    side.wait_stream(stream)
    with torch.cuda.stream(side), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a capturable optimizer steps outside of a capture
        for _ in range(NUM_WARMUPS):
            work()
    stream.wait_stream(side)
    torch.cuda.synchronize(device)
    reset_peak_memory(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = work()
    except BaseException:
        torch.cuda.set_stream(stream)  # a recording that fails leaves its own stream behind
        raise
    return graph, result
