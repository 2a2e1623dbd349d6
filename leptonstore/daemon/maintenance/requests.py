"""The operations `job`, `jobs` and `stop`: what a client asks of the jobs of a daemon, checked.

    job {kind, options}   -> {job}       jobs {}   -> {jobs: [job, ...], elsewhere: [{kind, job, by, host, began}, ...], kinds: [...]}
    stop {job: id}        -> {job}       job: Job.to_json; elsewhere: what other daemons of the store are at; kinds: Jobs.kinds

Whoever calls these has asked first whether the principal may (operations.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leptonstore.daemon.access import Principal
from leptonstore.daemon.jobs import Jobs
from leptonstore.errors import BadInput
from leptonstore.store.wire.messages import Request


def act(jobs: Jobs, principal: Principal, request: Request) -> dict[str, Any]:
    """The answer to a request whose `op` is job, jobs or stop. Raises BadInput, and as Jobs does."""
    arguments = request.arguments
    if request.op == "job":
        _only(arguments, "kind", "options")
        options = arguments.get("options", {})
        if not isinstance(options, Mapping):
            raise BadInput("'options' of a job must be an object")
        return {"job": jobs.start(_text(arguments, "kind"), options, principal.name).to_json()}
    if request.op == "stop":
        _only(arguments, "job")
        return {"job": jobs.stop(_text(arguments, "job")).to_json()}
    _only(arguments)
    return {"jobs": [job.to_json() for job in jobs.list()], "elsewhere": jobs.elsewhere(), "kinds": jobs.kinds()}


def _only(arguments: Mapping[str, Any], *names: str) -> None:
    for name in arguments:
        if name not in names and name != "of":  # of which store: every request may say, and the service has looked
            raise BadInput(f"there is no argument {str(name)[:80]!r}")


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise BadInput(f"{name!r} must be a text")
    return value
