"""The routes of a served model: /predict, /schema, /metrics, /healthz, /readyz."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from leptonstore.version import __version__
from leptonstore.web.bodies import Bodies
from leptonstore.web.guard import Note
from leptonstore.web.limits import RETRY_AFTER_S
from trainers.serving.batcher import Answer, Batcher
from trainers.serving.limits import BODY_PART_INLINE_BYTES_MAX, ServeLimits
from trainers.serving.metrics import CONTENT_TYPE, Metrics
from trainers.serving.model import Served
from trainers.serving.payload import ANSWERS, JSON, Reader, chosen_answer, write_answer
from trainers.serving.refusal import Refused
from trainers.serving.steady import Steady

OPEN_ROUTES = ("/healthz", "/readyz")  # what probes of an orchestrator ask, who have no token; they tell nothing
T = TypeVar("T")


class Routes:
    """Answers requests with a model. For one event loop."""

    def __init__(
        self,
        model: Served,
        batcher: Batcher[Steady],
        metrics: Metrics,
        limits: ServeLimits,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.draining = False
        self._model, self._batcher, self._metrics = model, batcher, metrics
        self._limits, self._pool = limits, pool
        self._bodies = Bodies(limits.bodies_bytes_max, limits.body_s)
        metrics.held_bytes.set_function(lambda: float(self._bodies.held_bytes))
        self._reader = Reader(model.input, limits, model.rows_max(limits), model.decode, model.ragged, model.texts)
        self._whose = {"x-lepton-model": _latin(model.name), "x-lepton-commit": model.commit}
        self.router = Router(
            [
                Route("/predict", self.predict, methods=["POST"]),
                Route("/schema", self.schema, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                Route("/healthz", self.health, methods=["GET"]),
                Route("/readyz", self.ready, methods=["GET"]),
            ],
            redirect_slashes=False,
        )

    def drain(self) -> None:
        """From now on /readyz says that no more should come. From any thread."""
        self.draining = True

    async def predict(self, request: Request) -> Response:
        """Rows in, outputs out (trainers.serving.payload)."""
        answer_kind = chosen_answer(request.headers.get("accept", ""))
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in self._reader.types:
            raise Refused("unsupported_type", f"content-type {kind!r:.100} is none of {', '.join(self._reader.types)}")
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refused("unsupported_type", "bodies must not be compressed")
        note: Note = request.state.note
        async with self._bodies.read(request, self._reader.bytes_max(kind)) as body:
            # Numbers of a small body are read at once; images are decoded beside the event loop, which they would hold up.
            small = len(body) <= BODY_PART_INLINE_BYTES_MAX and self._model.decode is None
            rows = await self._beside(small, lambda: self._reader.read(kind, body))
            try:
                async with asyncio.timeout(self._limits.answer_s):
                    answer = await self._batcher.submit(rows)
            except TimeoutError:
                raise Refused("no_answer", f"no answer within {self._limits.answer_s:g} s", RETRY_AFTER_S) from None
            note.more = _timing(answer, len(rows))
            self._metrics.queue_seconds.observe(answer.queue_s)
            small = answer.outputs.nbytes <= BODY_PART_INLINE_BYTES_MAX
            data, headers = await self._beside(small, lambda: self._write(answer_kind, answer))
        return Response(data, media_type=answer_kind, headers={**headers, **self._whose})

    async def schema(self, request: Request) -> Response:
        """What the model takes and gives, where it comes from, and what a request may have."""
        model, limits, steady = self._model, self._limits, self._batcher.runner
        return JSONResponse(
            {
                "model": model.name,
                "commit": model.commit,
                "input": model.input.to_dict(),
                "output": model.output.to_dict(),
                "classes": list(model.classes),
                "content_types": list(self._reader.types),
                "json": list(self._reader.keys),
                "shorter_rows": model.ragged,
                "answers": list(ANSWERS),
                "limits": {
                    "rows": self._reader.rows_max,
                    "body_bytes": {kind: self._reader.bytes_max(kind) for kind in self._reader.types},
                    "image_pixels": limits.pixels_max,
                },
                # Whether rows give the same bits in any company, and by how much they may differ (steady.py).
                "batching": {"exact": steady.exact, "relative_difference": steady.spread, "sizes": list(steady.sizes)},
                "lineage": model.about,
                "leptonstore": __version__,
            }
        )

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def health(self, request: Request) -> Response:
        """200 while there is a thread that runs the model: an orchestrator restarts what says otherwise."""
        if not self._batcher.alive:
            raise Refused("internal", "the model has stopped")
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """200 while requests should be sent here."""
        if self.draining or not self._batcher.alive:
            raise Refused("draining", "this server is stopping", RETRY_AFTER_S)
        return JSONResponse({"status": "ready"})

    def _write(self, kind: str, answer: Answer) -> tuple[bytes, dict[str, str]]:
        about: dict[str, Any] = {}
        if kind == JSON:
            about = {"model": self._model.name, "commit": self._model.commit}
            if (predictions := self._model.predictions(answer.outputs)) is not None:
                about["predictions"] = predictions
        return write_answer(kind, answer.outputs, self._model.output.name, about)

    async def _beside(self, small: bool, work: Callable[[], T]) -> T:
        """Small work at once; more of it in a thread, while other requests are answered."""
        return work() if small else await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _timing(answer: Answer, rows: int) -> dict[str, Any]:
    """What the log adds of a prediction."""
    return {
        "rows": rows,
        "queue_ms": round(answer.queue_s * 1e3, 3),
        "model_ms": round(answer.model_s * 1e3, 3),
        "batch_rows": answer.batch_rows,
    }


def _latin(name: str) -> str:
    """A header takes no more than latin-1."""
    return name.encode("latin-1", "replace").decode("latin-1")
