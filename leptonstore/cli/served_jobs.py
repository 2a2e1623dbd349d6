"""Work that a daemon does for a command: started as a job of its, watched until it ends, stopped by Ctrl-C."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from leptonstore import errors
from leptonstore.cli.runtime import progress
from leptonstore.errors import LeptonError
from leptonstore.store import Store
from leptonstore.store.wire.errors import CLASSES

POLL_S = 0.2
_AT_WORK = ("running", "stopping")


def ask(store: Store, op: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the daemon answers."""
    answer: dict[str, Any] = store.link.act(op, arguments or {})  # type: ignore[attr-defined]
    return answer


def run_job(store: Store, kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Have the daemon do a job of `kind`, and wait; what it tells of it. Raises as the job failed, or Stopped.

    Ctrl-C stops the job and waits for its last step; a second one leaves it to that. When the daemon does not answer any more, the job
    goes on or ends with it: TierUnavailable.
    """
    # In a thread: an interrupt while the daemon begins must not lose which job it is that is to be stopped.
    pool = ThreadPoolExecutor(1, "lepton-job")
    begun = pool.submit(ask, store, "job", {"kind": kind, "options": options})
    pool.shutdown(wait=False)
    try:
        job = _watched(store, begun.result()["job"])
    except KeyboardInterrupt:
        job = begun.result()["job"]
        ask(store, "stop", {"job": job["id"]})
        click.echo(f"lepton: the daemon is told to stop job {job['id']}; Ctrl-C again leaves it to that", err=True)
        while job["state"] in _AT_WORK:
            time.sleep(POLL_S)
            job = _find(store, job["id"])
    if job["state"] == "failed":
        raise _error(job)
    if job["state"] != "done":
        raise errors.Stopped(f"job {job['id']} was stopped; what it did is kept, and the next one goes on")
    result: dict[str, Any] = job["result"]
    return result


def _watched(store: Store, job: dict[str, Any]) -> dict[str, Any]:
    """The job when it has ended. One bar for each stage."""
    while job["state"] in _AT_WORK:
        total, unit = job["progress"]["total"], job["progress"]["unit"]
        label = f"{job['kind']}: {job['note']}" if job["note"] else job["kind"]
        with progress(label, total or None, unit) as tell:
            stage = (job["note"], total, unit)
            while job["state"] in _AT_WORK and stage == (
                job["note"],
                job["progress"]["total"],
                job["progress"]["unit"],
            ):
                tell(job["progress"]["done"])
                time.sleep(POLL_S)
                job = _find(store, job["id"])
    return job


def _error(job: dict[str, Any]) -> LeptonError:
    """What the job failed with: its class decides the exit code."""
    kind = CLASSES.get(str(job["error_class"]), LeptonError)
    error = kind.__new__(kind, str(job["error"]))
    error.args = (str(job["error"]),)
    return error


def _find(store: Store, id: str) -> dict[str, Any]:
    for job in ask(store, "jobs")["jobs"]:
        if job["id"] == id:
            found: dict[str, Any] = job
            return found
    raise errors.NotFound(
        f"the daemon knows job {id} no more: it was started again, and the job ended with it; run it again"
    )
