"""Serving: rows and requests a second of a served CNN against the same model in this process, and what a request waits.

python -m bench.serve [--seconds S] [--quick] [--json]

The server runs in a thread of this process with one thread of torch, the client in a process of its own; raw bodies and answers over
connections that stay open. `in process` is the model in batches of 64, without anything around it. Processor time is that of the whole
server process, the model included: unlike a rate, it means something on a machine that has other work.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from bench.harness import Figure, in_process, main, median, parser
from trainers.config import ModelConfig
from trainers.models import build_model
from trainers.program import Program, export
from trainers.serving.limits import ServeLimits
from trainers.serving.model import Served
from trainers.serving.server import ModelServer
from trainers.serving.steady import Steady
from trainers.signature import TensorSpec, probe_rows

SHAPE, CLASSES, BATCH = (28, 28), tuple("0123456789"), 64
RUNS = 3


def mnist_cnn() -> Served:
    """The CNN of the main job, untrained: its speed does not depend on its weights."""
    model = build_model(ModelConfig(reference="trainers.models:cnn"), SHAPE, len(CLASSES), seed=0).eval()
    program = Program(*export(model, torch.zeros((2, *SHAPE), dtype=torch.uint8)))
    takes = TensorSpec("images", "uint8", SHAPE, 0, 255)
    return Served("cnn", "0" * 64, takes, TensorSpec("logits", "float32", (len(CLASSES),)), program, CLASSES)


def seconds_per_call(call: Callable[[], object], seconds: float) -> float:
    """Of as many calls as fit."""
    call()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        count += 1
    return (time.perf_counter() - start) / count


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """Figures without bounds: nobody has promised any."""
    torch.set_num_threads(1)
    seconds = 0.3 if arguments.quick else arguments.seconds
    model = mnist_cnn()
    steady = Steady(model.program, model.input, BATCH)
    rows = probe_rows(model.input, BATCH)
    alone = [seconds_per_call(lambda: steady(rows), seconds / 2) for _ in range(RUNS)]
    own = BATCH / median(alone)
    one = median(seconds_per_call(lambda: steady(rows[:1]), seconds / 2) for _ in range(RUNS))
    start, calls = time.process_time(), 20
    for _ in range(calls):
        steady(rows)
    own_cpu = (time.process_time() - start) / calls / BATCH * 1e6
    figures = [
        Figure("in process", own, "rows/s"),
        Figure("  processor time", own_cpu, "us/row"),
        Figure("one row in process", one * 1e6, "us"),
    ]
    for wait_ms in (0.0, 2.0):
        with ModelServer(model, ServeLimits(batch_rows=BATCH, wait_ms=wait_ms), threads=1) as server:

            def ask(connections: int, count: int, port: int = server.port) -> dict[str, float]:
                told = [str(port), str(connections), str(seconds), str(count), str(model.input.row_bytes)]
                start = time.process_time()
                runs = [in_process("bench.serve_client", *told) for _ in range(RUNS)]
                spent = (time.process_time() - start) * 1e6
                return {
                    "cpu_us": spent / sum(run["requests"] for run in runs),
                    "rate": median(run["requests"] / run["seconds"] for run in runs),
                    "p50": median(run["p50_ms"] for run in runs),
                    "p99": median(run["p99_ms"] for run in runs),
                }

            said = f", wait {wait_ms:g} ms" if wait_ms else ""
            whole, many, single = ask(8, BATCH), ask(64, 1), ask(1, 1)
        figures += [
            Figure(f"64-row requests{said}", whole["rate"] * BATCH, "rows/s", "", "in process", own),
            Figure(f"  processor time{said}", whole["cpu_us"] / BATCH, "us/row", "", "in process", own_cpu),
            Figure(f"1-row requests{said}", many["rate"], "requests/s"),
            Figure(f"  processor time{said}", many["cpu_us"], "us/request"),
            Figure(f"  p50, 64 clients{said}", many["p50"], "ms"),
            Figure(f"  p99, 64 clients{said}", many["p99"], "ms"),
            Figure(f"  p50, one client{said}", single["p50"], "ms"),
            Figure(f"  p99, one client{said}", single["p99"], "ms"),
        ]
    return figures


if __name__ == "__main__":
    made = parser("serve", __doc__.split("\n")[0])
    made.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    main("serve", made.parse_args(), measure)
