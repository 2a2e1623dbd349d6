"""Benchmarks. Each `python -m bench.NAME [--quick] [--json]` prints one JSON object as its last line:

{bench, quick, commit, date, machine, figures: [{name, value, unit, peer, peer_value, ratio, bound, holds}]}

and exits with 0 only if every figure that has a bound holds. `--history` appends that line to bench/history.jsonl.
"""
