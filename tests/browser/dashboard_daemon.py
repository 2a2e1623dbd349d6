"""A daemon's dashboard in this process, of real parts: access, jobs, metrics, audit log, and the routes on a server of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from leptonstore.daemon.access import Access
from leptonstore.daemon.audit import AuditLog
from leptonstore.daemon.http.pages import Pages
from leptonstore.daemon.http.pages_context import PagesContext, context_of
from leptonstore.daemon.jobs import Jobs
from leptonstore.daemon.metrics import Metrics
from leptonstore.daemon.service import Service
from leptonstore.store import Store


@dataclass
class Dashboard:
    """url: without a path. token: of an administrator. path: of the store. context: what the pages were given."""

    url: str
    token: str
    path: Path
    context: PagesContext

    def sign_in_url(self) -> str:
        """As `lepton serve` prints it."""
        return self.url + self.context.sessions.sign_in_path(f"Bearer {self.token}")


@contextmanager
def dashboard(path: Path, folder: Path) -> Iterator[Dashboard]:
    """Serve the store at `path` until the end of the `with`."""
    token = "a-local-token"
    with Store.open(path) as store:
        service = Service(store, "data")
        access = Access.of(store, audit_log=AuditLog(folder / "audit.jsonl"), local_token=token)
        metrics, jobs = Metrics(), Jobs(lambda: Store.open(path))
        context = context_of(service, access, metrics, url="lepton://127.0.0.1:7400/data", jobs=jobs)
        pages = Pages(context)
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=pages.routes()), port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Dashboard(f"http://127.0.0.1:{port}", token, path, context)
        finally:
            server.should_exit = True
            thread.join()
            pages.close()
            jobs.close()
            service.close()
            access.close()
