"""Which runs `python -m bench.all` consists of: every benchmark, a workload at a time, with every peer that it knows.

A run is a command of its own. Workloads of one benchmark are separate runs, so that one that fails takes no other with it and
`--resume` has little to do again. A benchmark that is not in RUNS is not run by bench.all; a test says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.harness import find_mnist

MINUTE = 60.0


@dataclass(frozen=True)
class Run:
    """One command.

    name:     what --only, the results and their pictures call it.
    bench:    the module below `bench`, which is also what its results and bench/history.jsonl call it.
    options:  of a whole run, peers included.
    small:    of a run that shows that it works: `--quick`, no peers with an environment of their own.
    mnist:    whether it takes `--data DIR`, MNIST's IDX files.
    limit_s:  it is ended after so many seconds: several times what it takes on two cores.
    watched:  figures of the small run that CI compares with bench/baseline.json; their ratios must be steady (decision 67).
    """

    name: str
    bench: str
    options: tuple[str, ...] = ()
    small: tuple[str, ...] = ("--quick",)
    mnist: bool = False
    limit_s: float = 20 * MINUTE
    watched: tuple[str, ...] = ()

    def arguments(self, small: bool, data: str | None) -> list[str]:
        """All that stands after `python -m bench.NAME`. data: where MNIST is; a small run takes it only when it is told where."""
        options = [*(self.small if small else self.options), "--json"]
        found = find_mnist(data) if self.mnist and (data or not small) else None
        return [*options, "--data", str(found)] if found else options


def _workloads(bench: str, *names: str, option: str = "--workload", **more: object) -> list[Run]:
    return [
        Run(f"{bench}-{name}", bench, (option, name), ("--quick", option, name), **more)  # type: ignore[arg-type]
        for name in names
    ]


RUNS: tuple[Run, ...] = (
    Run("demo", "demo", mnist=True),
    Run("ingest", "ingest", ("--vs", "restic,borg", "--runs", "2"), limit_s=60 * MINUTE),
    Run("records", "records", watched=("stored", "stored_of_groups", "stored_of_pages")),
    Run("index", "index"),
    *_workloads("tiers", "block", "object", "tiered", option="--only"),
    Run("cache", "cache"),
    *_workloads("dataset", "edits", option="--only", watched=("add_column", "add_column_zstd")),
    *_workloads("dataset", "history", "read", "remotes", option="--only"),
    Run("erase", "erase"),
    *_workloads("loader", "mnist", mnist=True, limit_s=60 * MINUTE),
    *_workloads("loader", "jpeg", "tokens", "remote", "workers", limit_s=40 * MINUTE),
    Run(
        "train",
        "train",
        ("--vs", "keras,torch"),
        mnist=True,
        limit_s=60 * MINUTE,
        watched=("step of one layer, processor time",),
    ),
    Run("checkpoint", "checkpoint"),
    Run("serve", "serve"),
    *_workloads("process", "pipeline", limit_s=40 * MINUTE),
    *_workloads("process", "texts", limit_s=40 * MINUTE, watched=("texts, processor time",)),
    *_workloads("process", "statistics", limit_s=40 * MINUTE),
    *_workloads("process", "operations", watched=("text.tokenise",)),
    *_workloads("process", "report"),
    *_workloads("process", "clean", "images", mnist=True),
    *_workloads("daemon", "bulk", "chunks", "jpeg", "cluster"),
    *_workloads("daemon", "mnist", mnist=True),
    *_workloads("daemon", "soak", limit_s=30 * MINUTE),
    Run("soak", "soak"),
    Run("simulate", "simulate", ("--check", "--measure"), ("--quick", "--check")),
)


def named(names: list[str]) -> list[Run]:
    """The runs of these names, in RUNS' order; a benchmark's name stands for all of its runs. Raises ValueError for another."""
    known = {run.name for run in RUNS} | {run.bench for run in RUNS}
    for name in names:
        if name not in known:
            raise ValueError(f"there is no run {name!r}; --list shows them")
    return [run for run in RUNS if run.name in names or run.bench in names]
