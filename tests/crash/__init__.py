"""Crashes: power loss replayed from a recording of the file operations, kill -9 of processes in the middle of their work.

recording    what a run did to the files of a store, operation by operation
disk         which contents a disk may have after the power failed
runs         what is recorded: imports, commits, deletions, collections; and what they promised
power_loss   every crash point of every run: python -m tests.crash.power_loss --all
kill         processes killed at random moments: python -m tests.crash.kill --kills 200
"""
