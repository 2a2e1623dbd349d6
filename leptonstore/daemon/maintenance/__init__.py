"""Maintenance that a daemon does beside its work: what `jobs.py` starts, lists and stops.

work.py      what a kind of job is, which options it takes, and how a running one tells progress and is stopped
kinds.py     every kind; those that are more than a call of the store: checking, scrub, tiering, checkpoint
pace.py      bytes per second            alone.py     one of a kind at a time, among all daemons of a store
record.py    what is kept of them in the store's home           schedule.py     when they begin by themselves
requests.py  the operations `job`, `jobs` and `stop`
"""
