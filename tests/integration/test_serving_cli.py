"""`lepton deploy serve` as a process: it says where it listens, answers, and ends with its requests answered and code 0."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
import torch
from click.testing import CliRunner, Result
from serving_client import TIMEOUT_S, get, parse_reply, post, raw_exchange, request_bytes
from training_data import NAMES, SHAPE, patterns, quick_config, write_patterns

from leptonstore.errors import BadInput, RefMissing, SourceError
from leptonstore.store import Store
from trainers.commands_deploy import deploy as command
from trainers.deploy import Bundle, deploy, load_bundle
from trainers.loop import Trainer

RAW = "application/octet-stream"
LEPTON = [sys.executable, "-c", "from leptonstore.cli import main; main()"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model "model"."""
    folder = tmp_path_factory.mktemp("serve")
    with Store.create(folder / "store", cache_dir=folder / "cache") as store:
        Trainer(quick_config(), store, write_patterns(store), run="run").fit(max_steps=2)
        deploy(store, "run", "model")
    return folder


@pytest.fixture(scope="module")
def bundle(place: Path) -> Bundle:
    with Store.open(place / "store", cache_dir=place / "cache") as store:
        return load_bundle(store, "model")


@pytest.fixture
def served(place: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, url)"""
    arguments = [*LEPTON, "deploy", "serve", "model", "--store", "store", "--port", "0", "--threads", "1", "--json"]
    arguments += ["--access-log", "access.jsonl", "--drain-wait", "0.5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(place / "home")}
    with subprocess.Popen(arguments, cwd=place, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield process, told["url"]
        process.kill()


def test_it_serves_logs_and_ends_with_its_requests_answered(
    place: Path, bundle: Bundle, served: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = served
    images = torch.from_numpy(patterns(40)[0])
    reply = post(url, images.numpy().tobytes(), RAW)
    assert torch.allclose(torch.tensor(reply.json()["logits"]), bundle(images), atol=1e-6)
    assert reply.headers["x-lepton-commit"] == bundle.commit
    schema = get(url, "/schema").json()
    assert schema["classes"] == NAMES and schema["input"]["shape"] == ["batch", *SHAPE]
    assert schema["lineage"]["data"]["training"]["name"] == "patterns"

    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port), TIMEOUT_S) as connection:
        data = request_bytes("POST", "/predict", images[0].numpy().tobytes(), {"content-type": RAW})
        connection.sendall(data[:-1])  # under way when the signal comes
        assert get(url, "/readyz").status == 200  # what came before has been read
        process.send_signal(signal.SIGTERM)
        connection.sendall(data[-1:])
        found = b""
        while part := connection.recv(65_536):
            found += part
    assert parse_reply(found).status == 200
    assert process.wait(60) == 0
    lines = [json.loads(line) for line in (place / "access.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines if line["path"] == "/predict"] == [200, 200]
    with pytest.raises(ConnectionError):
        raw_exchange(url, request_bytes("GET", "/healthz"))


def invoke(place: Path, *arguments: str) -> Result:
    """In this process: what a new one does is import torch."""
    told = [str(place / "store") if one == "store" else one for one in arguments]
    return CliRunner().invoke(command, told, standalone_mode=False)


def test_what_cannot_be_served_is_one_line(place: Path) -> None:
    for arguments, kind, said in (
        (("nothing",), RefMissing, "nothing"),
        (("model", "--host", "0.0.0.0"), BadInput, "--allow-remote"),
        (("model", "--token-file", "absent.json"), SourceError, "lepton deploy token"),
        (("model", "--max-batch", "48"), BadInput, "power of two"),
        (("model", "--tls-cert", "cert.pem"), click.UsageError, "together"),
    ):
        error = invoke(place, "serve", "--store", "store", "--port", "0", *arguments).exception
        assert isinstance(error, kind) and said in str(error)


def test_deploy_and_its_commands_share_a_name(place: Path) -> None:
    ways = (
        ("run", "model", "--store", "store", "--json"),
        ("--store", "store", "--json", "run", "model"),
        ("make", "--store", "store", "--json", "run", "model"),
    )
    told = [invoke(place, *way) for way in ways]
    assert len({json.loads(result.stdout.splitlines()[-1])["commit"] for result in told}) == 1
    assert "serve" in invoke(place, "--help").stdout


def test_tokens_are_made_and_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    made = json.loads(invoke(tmp_path, "token", str(path), "ci", "--expires", "90d", "--json").stdout)
    assert made["token"].startswith("lepton_") and made["token"] not in path.read_text()
    assert isinstance(invoke(tmp_path, "token", str(path), "ci").exception, BadInput)
    assert isinstance(invoke(tmp_path, "token", str(path), "x", "--expires", "soon").exception, BadInput)
    assert invoke(tmp_path, "token", str(path), "ci", "--remove").exception is None
    assert json.loads(path.read_text())["tokens"] == []


def test_help_needs_neither_torch_nor_a_server() -> None:
    code = "import sys; sys.argv=['lepton','deploy','serve','--help']\nfrom leptonstore.cli import main\ntry:\n main()\nfinally:\n "
    code += "print(sorted({'torch','uvicorn','starlette','prometheus_client','onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; import trainers.serving.server"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtra: serving a model needs an optional part" in done.stderr
    assert 'pip install "leptonstore[serve]"' in done.stderr.splitlines()[-1]
