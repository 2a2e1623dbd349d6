"""Maintenance that a daemon does beside its work: what `jobs.py` starts, lists and stops.

work.py     what a kind of job is, which options it takes, and how a running one tells progress and is stopped
kinds.py    every kind                     alone.py    one of a kind at a time, among all daemons of a store
requests.py the operations `job`, `jobs` and `stop`
"""
