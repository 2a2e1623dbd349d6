"""Where pipelines run: rows of a version flow through Daft, in this process or on a Ray cluster, and become the tree of a new version.

    pieces.py   what goes through a step: rows as pages keep them, so that a large value that nobody looks at is never read
    passes.py   a pass: rows_of, write_rows; what is lost is given out again    runner.py   native or Ray
    source.py   a dataset version as a Daft DataSource                          carrier.py  columns as Daft carries them
    apply.py    the step as a UDF                                               flow.py     what comes out of it
    sink.py     a Daft DataSink that stores rows, on the worker that has them   stitch.py   what workers stored -> the one tree
    workers.py  which store a worker uses                                       failures.py errors on their way to the caller
    jobs.py     what a pass asks of a runner                                    plain.py    plain values, for ../daft_frame.py
    cluster.py  Ray, which another process talks to: ray_driver.py

The root depends on rows and schema alone, so every runner and every number of workers makes the same.
"""

from leptonstore.process.engine.passes import Written, rows_of, write_rows
from leptonstore.process.engine.runner import Runner

__all__ = ["Runner", "Written", "rows_of", "write_rows"]
