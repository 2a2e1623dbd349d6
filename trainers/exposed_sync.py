"""What a rank waited for the others inside backward, under DDP.

DDP adds up gradients while backward computes; what is left of that when the last gradient is ready, backward waits for.
Its reducer notes both times (on CUDA by events), so nothing has to be wrapped or replaced to learn the difference:

    backward        |---------- compute ----------|           |
    all-reduces              |--------------- communication --|
    exposed                                       |-- wait ---|

Costs some 50 us a step and rank, beside an all-reduce. FSDP2 has no such clock: there the wait stays in compute.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def watch(wrapped: nn.Module) -> None:
    """Have DDP take its times at every step, and not at every hundredth. Any other module is left as it is."""
    if isinstance(wrapped, DistributedDataParallel):
        wrapped._set_ddp_runtime_logging_sample_rate(1)


def exposed_s(wrapped: nn.Module) -> float:
    """Seconds that the last backward waited for other ranks; call it right after. 0 for a module that is not DDP."""
    if not isinstance(wrapped, DistributedDataParallel) or not wrapped.require_backward_grad_sync:
        return 0.0
    wrapped.logger.set_runtime_stats_and_log()  # type: ignore[union-attr]
    times = wrapped._get_ddp_logging_data()
    communication, hidden = times.get("backward_comm_time", 0), times.get("backward_compute_comm_overlap_time", 0)
    return max(0, communication - hidden) / 1e9
