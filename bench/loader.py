"""`python -m bench.loader [--workload NAME] [--plot FILE]`: the DataLoader beside its peers, same data and batches, in one run.

mnist     shuffled epochs of small fixed-width rows                          bench/loader_mnist.py
jpeg      random-resized crops of JPEGs                                      bench/loader_jpeg.py
tokens    random windows and packs of a stream of tokens                     bench/loader_tokens.py
workers   worker processes: kills, memory, hand-over                         bench/loader_workers.py
remote    epochs out of a bucket, cold                                       bench/loader_remote.py

Each module states its contract. Peers run in environments of their own (bench/peers), made on first use; `--quick` leaves them out.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from bench import harness
from bench.harness import Figure

WORKLOADS = ("mnist", "jpeg", "tokens", "remote", "workers")


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures of the workloads that were asked for."""
    figures: list[Figure] = []
    for name in [arguments.workload] if arguments.workload else WORKLOADS:
        figures += importlib.import_module(f"bench.loader_{name}").measure(arguments)
    if arguments.plot:
        plot(figures, Path(arguments.plot))
    return figures


def plot(figures: list[Figure], file: Path) -> None:
    """Bars of everything that is measured in rows per second, on a logarithmic scale; the kind of picture is the file's suffix."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [figure for figure in figures if figure.unit.endswith("/s")]
    # "mnist vs torch" is the figure "mnist" again, beside a peer.
    bars = {figure.name: figure.value for figure in shown if " vs " not in figure.name}
    bars |= {figure.peer: figure.peer_value for figure in shown if figure.peer and figure.peer_value}
    names = sorted(bars, key=lambda name: bars[name])
    ours = {figure.name for figure in figures}
    made, axes = pyplot.subplots(figsize=(9, 0.9 + 0.34 * len(names)), layout="constrained")
    drawn = axes.barh(
        names, [bars[name] for name in names], color=["#2563eb" if name in ours else "#9ca3af" for name in names]
    )
    axes.bar_label(drawn, labels=[f"{bars[name]:,.0f}" for name in names], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("rows per second, logarithmic (blue: LeptonStore)")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    made.savefig(file, dpi=140)


def main() -> None:
    """Parse the arguments and run."""
    parser = harness.parser("loader", __doc__.split("\n")[0])
    parser.add_argument("--workload", choices=WORKLOADS, help="one of them; default: all, one after another")
    parser.add_argument("--plot", metavar="FILE", help="write a bar chart too (.png, .svg)")
    parser.add_argument("--data", metavar="DIR", help="MNIST's IDX files")
    harness.main("loader", parser.parse_args(), measure)


if __name__ == "__main__":
    main()
