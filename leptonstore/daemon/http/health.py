"""/healthz and /readyz: what an orchestrator or a load balancer asks, who have no credential. They tell nothing else.

/healthz   200 while this process answers: who does not get that may restart it
/readyz    200 while requests should be sent here: the store answers, and the daemon is not about to end; else 503
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from leptonstore.daemon.http.bounds import READY_LOOK_S, READY_S
from leptonstore.daemon.http.failures import Failed
from leptonstore.daemon.service import Service


class Health:
    """For one event loop. One thread of its own asks the store, for all probes together: one that hangs hangs alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lepton-http-ready")
        self._look: Future[None] | None = None
        self._good_until = 0.0
        self.draining = False

    async def alive(self, request: Request) -> Response:
        """GET /healthz"""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """GET /readyz"""
        if self.draining:
            raise Failed("TooBusy", "this daemon is about to end", 503, 1)
        if time.monotonic() >= self._good_until and not await self._store_answers():
            raise Failed("TierUnavailable", "the store does not answer", 503, 1)
        return JSONResponse({"status": "ready"})

    async def _store_answers(self) -> bool:
        if (
            self._look is None or self._look.done()
        ):  # one that ended after its probe had gone tells of that time, not of now
            self._look = self._pool.submit(self._service.reading.refresh)
        look = self._look
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.shield(asyncio.wrap_future(look))
        except TimeoutError:
            return False  # the look goes on; the next probe waits for the same one
        except Exception:
            self._look = None
            return False
        self._look = None
        self._good_until = time.monotonic() + READY_LOOK_S
        return True

    def close(self) -> None:
        """No more looks."""
        self._pool.shutdown(wait=False, cancel_futures=True)
