"""A served model: its outputs are those of the model, whoever else asks at the same time, and it ends politely."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from serving_client import (
    Reply,
    exchange,
    exchange_later,
    get,
    metrics,
    parse_reply,
    post,
    raw_exchange,
    request_bytes,
    wait_for_metric,
)
from serving_models import CLASSES, SHAPE, Gate, classifier, numbers, png

from leptonstore.errors import BadInput
from leptonstore.process import images
from trainers.serving.limits import ServeLimits
from trainers.serving.server import ModelServer
from trainers.serving.steady import Steady

REQUESTS = 1_000
RAW, JSON, SAFETENSORS = "application/octet-stream", "application/json", "application/x-safetensors"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The access log."""
    return []


@pytest.fixture(scope="module")
def server(lines: list[str]) -> Iterator[ModelServer]:
    with ModelServer(classifier(), threads=1, access=lines.append) as running:
        yield running


def pixels(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *SHAPE), dtype=np.uint8)


def logits(reply: Reply) -> torch.Tensor:
    assert reply.status == 200, reply.body
    kind = reply.headers["content-type"]
    if kind == JSON:
        return torch.tensor(reply.json()["logits"], dtype=torch.float32)
    if kind == SAFETENSORS:
        from safetensors.torch import load

        return load(reply.body)["logits"]
    shape = [int(size) for size in reply.headers["x-lepton-shape"].split(",")]
    assert reply.headers["x-lepton-dtype"] == "float32"
    return torch.from_numpy(np.frombuffer(reply.body, "<f4").reshape(shape).copy())


def test_a_thousand_concurrent_requests_get_the_bits_of_the_model(server: ModelServer) -> None:
    """All connections are open before the first request is sent; sizes and formats are mixed."""
    sizes = np.random.default_rng(1).integers(1, 6, REQUESTS)
    rows = pixels(int(sizes.sum()))
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    where = urlsplit(server.url)

    async def ask(number: int, everybody: asyncio.Barrier) -> Reply:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        await everybody.wait()
        kind, accept = (JSON, RAW, SAFETENSORS)[number % 3], (JSON, RAW, SAFETENSORS)[number // 3 % 3]
        writer.write(
            request_bytes("POST", "/predict", body_of(parts[number], kind), {"content-type": kind, "accept": accept})
        )
        await writer.drain()
        reply = parse_reply(await reader.read(-1))
        writer.close()
        return reply

    async def everyone() -> list[Reply]:
        barrier = asyncio.Barrier(REQUESTS)
        async with asyncio.timeout(120):
            return await asyncio.gather(*(ask(number, barrier) for number in range(REQUESTS)))

    replies = asyncio.run(everyone())
    assert {reply.status for reply in replies} == {200}
    served = torch.cat([logits(reply) for reply in replies])
    model = classifier()
    alone = Steady(model.program, model.input, ServeLimits().batch_rows)
    assert alone.exact
    assert torch.equal(served, alone(torch.from_numpy(rows)))
    assert torch.allclose(served, model.program(torch.from_numpy(rows)), rtol=0, atol=1e-6)
    found = metrics(server.url)
    assert found["lepton_batch_rows_sum"] >= len(rows)
    assert found["lepton_batch_rows_count"] < REQUESTS  # they did share batches


def body_of(rows: np.ndarray, kind: str) -> bytes:
    if kind == JSON:
        return json.dumps({"inputs": rows.tolist()}).encode()
    if kind == RAW:
        return rows.tobytes()
    from safetensors.numpy import save

    return save({"images": rows})


def test_a_row_gives_the_same_bits_alone_and_in_any_company(server: ModelServer) -> None:
    rows = pixels(200, seed=3)
    together = logits(post(server.url, rows.tobytes(), RAW))
    for first, count in ((0, 1), (5, 2), (17, 63), (64, 64), (3, 65), (100, 100)):
        assert torch.equal(
            logits(post(server.url, rows[first : first + count].tobytes(), RAW)), together[first : first + count]
        )


def test_an_answer_names_class_and_confidence_and_the_model(server: ModelServer) -> None:
    rows = pixels(3)
    reply = post(server.url, body_of(rows, JSON), accept="text/html, application/json;q=0.5")
    told = reply.json()
    shares = torch.softmax(logits(reply), 1)
    assert (
        (told["model"], told["commit"])
        == ("birds", "c0" * 32)
        == (reply.headers["x-lepton-model"], reply.headers["x-lepton-commit"])
    )
    for prediction, row in zip(told["predictions"], shares, strict=True):
        assert prediction["label"] == CLASSES[int(row.argmax())] == CLASSES[prediction["index"]]
        assert prediction["confidence"] == pytest.approx(float(row.max()), abs=1e-6)


def test_image_files_are_brought_to_what_the_model_takes(server: ModelServer) -> None:
    files = [png(20, 31, seed) for seed in range(3)]
    rows = np.stack([images.fit(images.decode(data), SHAPE) for data in files])
    expected = logits(post(server.url, rows.tobytes(), RAW))
    for data, row in zip(files, expected, strict=True):
        assert torch.equal(logits(post(server.url, data, "image/png"))[0], row)
    body = json.dumps({"images": [base64.b64encode(data).decode() for data in files]}).encode()
    assert torch.equal(logits(post(server.url, body)), expected)


def test_the_schema_says_what_is_taken(server: ModelServer) -> None:
    told = get(server.url, "/schema").json()
    assert told["input"] == {"name": "images", "dtype": "uint8", "shape": ["batch", *SHAPE], "range": [0, 255]}
    assert told["output"] == {"name": "logits", "dtype": "float32", "shape": ["batch", len(CLASSES)]}
    assert told["classes"] == list(CLASSES)
    assert told["batching"]["exact"] is True and told["batching"]["sizes"][-1] == ServeLimits().batch_rows
    rows = pixels(told["limits"]["rows"])
    assert post(server.url, rows.tobytes(), RAW).status == 200


def test_every_request_is_logged_and_counted_once(server: ModelServer, lines: list[str]) -> None:
    before, counted = len(lines), metrics(server.url)
    post(server.url, pixels(2).tobytes(), RAW, x_request_id="mine-1")
    post(server.url, b"{", JSON)
    get(server.url, "/nothing%C3%A9?secret=1")
    told = [json.loads(line) for line in lines[before + 1 :]]  # the first is that of /metrics
    assert [(one["path"], one["status"], one.get("error")) for one in told] == [
        ("/predict", 200, None),
        ("/predict", 400, "malformed"),
        ("/nothing\u00e9", 404, "not_found"),
    ]
    assert told[0]["id"] == "mine-1" and told[0]["rows"] == 2 and told[0]["bytes_in"] == 2 * 64
    assert {"queue_ms", "model_ms", "batch_rows", "ms"} <= set(told[0])
    name = 'lepton_requests_total{route="/predict",status="400"}'
    assert metrics(server.url)[name] == counted.get(name, 0) + 1


def test_a_kept_connection_answers_one_request_after_another(server: ModelServer) -> None:
    one = request_bytes("POST", "/predict", pixels(1).tobytes(), {"content-type": RAW}, close=False)
    bad = request_bytes("POST", "/predict", b"x", {"content-type": RAW}, close=False)
    last = request_bytes("GET", "/healthz")
    data = raw_exchange(server.url, one + bad + one + last)  # pipelined
    assert [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]] == [200, 422, 200, 200]


# -- the queue ---------------------------------------------------------------------------------------------------------


def in_thread(url: str, data: bytes, replies: list[Reply]) -> threading.Thread:
    thread = threading.Thread(target=lambda: replies.append(exchange(url, data)))
    thread.start()
    return thread


def three(value: float) -> bytes:
    return request_bytes("POST", "/predict", np.full((1, 3), value, "<f4").tobytes(), {"content-type": RAW})


def test_a_full_queue_says_when_to_come_again_and_loses_nobody() -> None:
    gate = Gate()
    limits = ServeLimits(queue_rows_max=4, rows_max=4, batch_rows=2)
    with ModelServer(numbers(gate), limits) as server:
        gate.shut()
        replies: list[Reply] = []
        threads = [in_thread(server.url, three(0), replies)]
        assert gate.entered.wait(60)
        for number in range(1, 5):
            threads.append(in_thread(server.url, three(number), replies))
            wait_for_metric(server.url, "lepton_queue_rows", number)
        refused = exchange(server.url, three(9))
        assert (refused.status, refused.error) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert get(server.url, "/healthz").status == get(server.url, "/readyz").status == 200
        gate.open.set()
        for thread in threads:
            thread.join()
    assert sorted(reply.json()["sums"][0][0] for reply in replies) == [0, 3, 6, 9, 12]


def test_a_request_that_fails_fails_alone() -> None:
    def picky(rows: torch.Tensor) -> torch.Tensor:
        if bool((rows == 66).any()):
            raise RuntimeError("a secret of the model")
        return torch.stack([rows.sum(1), -rows.sum(1)], 1)

    gate = Gate()

    def model(rows: torch.Tensor) -> torch.Tensor:
        gate(rows)
        return picky(rows)

    with ModelServer(numbers(model)) as server:
        gate.shut()
        replies: list[Reply] = []
        threads = [in_thread(server.url, three(1), replies)]
        assert gate.entered.wait(60)
        for number, value in enumerate((2, 66, 3), 1):
            threads.append(in_thread(server.url, three(value), replies))
            wait_for_metric(server.url, "lepton_queue_rows", number)
        gate.open.set()
        for thread in threads:
            thread.join()
    good = [reply.json()["sums"][0][0] for reply in replies if reply.status == 200]
    assert sorted(good) == [3, 6, 9]
    (bad,) = (reply for reply in replies if reply.status != 200)
    assert (bad.status, bad.error) == (500, "internal")
    assert b"secret" not in bad.body and b"Error" not in bad.body


def test_an_answer_that_takes_too_long_is_given_up_and_its_rows_are_not_computed() -> None:
    gate = Gate()
    seen: list[float] = []

    def model(rows: torch.Tensor) -> torch.Tensor:
        seen.extend(rows[:, 0].tolist())
        return gate(rows)

    with ModelServer(numbers(model), ServeLimits(answer_s=1.0)) as server:
        gate.shut()
        seen.clear()
        replies: list[Reply] = []
        first = in_thread(server.url, three(1), replies)
        assert gate.entered.wait(60)
        late = exchange(server.url, three(7))
        assert (late.status, late.error) == (504, "no_answer")
        first.join()
        gate.open.set()
        assert exchange(server.url, three(2)).status == 200
    assert 7.0 not in seen


def test_a_model_that_depends_on_company_is_said_to(server: ModelServer) -> None:
    def mixing(rows: torch.Tensor) -> torch.Tensor:
        centred = rows - rows.mean(0)
        return torch.stack([centred.sum(1), -centred.sum(1)], 1)

    with ModelServer(numbers(mixing)) as other:
        told = get(other.url, "/schema").json()["batching"]
    assert told["exact"] is False and told["relative_difference"] > 0.01
    assert get(server.url, "/schema").json()["batching"] == {"exact": True, "relative_difference": 0.0} | {
        "sizes": get(server.url, "/schema").json()["batching"]["sizes"]
    }


# -- the end -----------------------------------------------------------------------------------------------------------


def test_requests_under_way_are_answered_when_the_server_stops() -> None:
    gate = Gate()
    with ModelServer(numbers(gate), ServeLimits(drain_wait_s=3.0)) as server:
        where = urlsplit(server.url)
        assert where.hostname and where.port
        gate.shut()
        replies: list[Reply] = []
        threads = [in_thread(server.url, three(1), replies)]
        assert gate.entered.wait(60)
        threads += [in_thread(server.url, three(value), replies) for value in (2, 3)]
        wait_for_metric(server.url, "lepton_queue_rows", 2)
        server.stop()
        ready = get(server.url, "/readyz")  # still in the time in which load balancers look
        assert (ready.status, ready.error) == (503, "draining")
        gate.open.set()
        for thread in threads:
            thread.join()
    assert sorted(reply.json()["sums"][0][0] for reply in replies) == [3, 6, 9]
    with pytest.raises(ConnectionRefusedError), socket.create_connection((where.hostname, where.port), 5):
        pass


def test_what_is_still_under_way_when_the_time_is_over_is_told_so() -> None:
    gate = Gate()
    with ModelServer(numbers(gate), ServeLimits(drain_s=0.2)) as server:
        gate.shut()
        replies: list[Reply] = []
        threads = [in_thread(server.url, three(1), replies)]
        assert gate.entered.wait(60)
        server.stop()
        threads[0].join()
        gate.open.set()
    assert [(reply.status, reply.error) for reply in replies] == [(503, "draining")]


def test_a_port_that_is_taken_and_an_address_of_others_are_refused() -> None:
    with pytest.raises(BadInput, match="other machines can reach"):
        ModelServer(numbers(), host="0.0.0.0")
    with pytest.raises(BadInput, match="other machines can reach"):
        ModelServer(numbers(), host="0.0.0.0", allow_remote=True)
    with ModelServer(numbers()) as server, pytest.raises(BadInput, match="choose another port"):
        ModelServer(numbers(), port=server.port)


def test_a_model_that_cannot_run_does_not_start() -> None:
    def broken(rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), ModelServer(numbers(broken)):
        pass


def test_exchange_later_is_the_same_as_exchange(server: ModelServer) -> None:
    data = request_bytes("GET", "/healthz")
    assert asyncio.run(exchange_later(server.url, data)).json() == exchange(server.url, data).json()
