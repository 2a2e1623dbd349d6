"""The command line: `lepton`.

The only place that parses arguments, reads the environment and prints. Commands are found through the entry points
`lepton.commands` and imported when they run, so that `lepton --help` stays quick and loaders and trainers can add theirs.
"""

from leptonstore.cli.main import main

__all__ = ["main"]
