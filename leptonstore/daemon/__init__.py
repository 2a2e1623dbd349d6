"""The storage daemon (`lepton serve`): a data plane over Arrow Flight, a control plane over HTTP, and a cooperative cache.

operations.py   every operation, on which plane it is, and what a credential must allow for it
access.py       who asks, and what they may
service.py      the operations themselves, for both planes
flight.py       the data plane            http/      the control plane, content and dashboard
cluster/        several daemons as one cache          jobs.py    maintenance
daemon.py       all of them as one process
"""
