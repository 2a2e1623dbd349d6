"""Where pipelines run: rows of a version flow through Daft, in this process or on a Ray cluster, and become the tree of a new version.

    pieces.py   what goes through a step: rows as pages keep them, so that a large value that nobody looks at is never read
    source.py   a dataset version as a Daft DataSource         sink.py   a Daft DataSink that stores rows, on the worker that has them
    runner.py   native or Ray                                  stitch.py what workers stored -> the one tree of these rows

The root depends on rows and schema alone, so every runner and every number of workers makes the same.
"""

from leptonstore.process.engine.passes import Written, rows_of, write_rows
from leptonstore.process.engine.runner import Runner

__all__ = ["Runner", "Written", "rows_of", "write_rows"]
