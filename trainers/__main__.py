"""`python -m trainers …` is `lepton train …`, in the form that torchrun starts:

torchrun --nproc-per-node 2 -m trainers DATASET --store STORE
"""

from __future__ import annotations

import sys

import click

from leptonstore.cli.runtime import run
from trainers.commands import train

if __name__ == "__main__":
    sys.exit(run(click.Group(commands={"train": train}), ["train", *sys.argv[1:]]))
