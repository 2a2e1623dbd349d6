"""`lepton deploy`: make a model bundle, serve it, write it out for other tools, and tokens for who may ask it.

torch and uvicorn are imported when a command runs, so that `--help` of each is quick.
"""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from typing import Any

import click

from leptonstore.cli.completion import offer_names
from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.errors import BadInput
from leptonstore.quantities import lifetime_of
from trainers.commands import ready_torch

PORT = 8471  # free at IANA, and of no well-known program


class _Deploy(click.Group):
    """`lepton deploy RUN` is short for `lepton deploy make RUN`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            offer_names(found)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and self.get_command(ctx, name) is None:
            args = ["make", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Options before RUN are those of `make`: the group has none of its own but --help.
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group("deploy", cls=_Deploy)
def deploy() -> None:
    """Make a model bundle from a checkpoint; serve it; write it out for other tools.

    `lepton deploy RUN [MODEL]` is short for `lepton deploy make RUN [MODEL]`. All take --json.

    \b
    Example:
      lepton deploy mnist-1a2b3c4d mnist-cnn
      lepton deploy serve mnist-cnn
    """


@deploy.command("make")
@click.argument("run", metavar="RUN")
@click.argument("name", required=False, metavar="[MODEL]")
@store_option
@click.option("--step", type=int, help="The checkpoint of this step (default: the newest).")
@click.option("--model", "reference", metavar="MODULE:FUNCTION", help="Confirm a model that is not trainers.models'.")
@click.option("--pt2", metavar="FILE", help="Also write torch.export's archive, for tools without LeptonStore.")
@json_option
def make(
    run: str,
    name: str | None,
    store: str | None,
    step: int | None,
    reference: str | None,
    pt2: str | None,
    as_json: bool,
) -> None:
    """Make a model bundle from a checkpoint of RUN: program, weights, preprocessing, schema, lineage.

    \b
    Example:
      lepton deploy mnist-1a2b3c4d mnist-cnn
    """
    ready_torch()
    from trainers.run import run_deploy

    with open_store(store) as opened:
        result = run_deploy(opened, run.removeprefix("checkpoint/"), name, step=step, reference=reference, pt2=pt2)
    checkpoint, data = result["checkpoint"], result["data"]["training"]
    said = f"model {result['model']} is {result['commit'][:12]}: {checkpoint['branch']} of run {checkpoint['run']}"
    emit(result, as_json, f"{said}, trained on {data['name']} {data['commit'][:12]}")


@deploy.command("serve")
@click.argument("model", metavar="MODEL")
@store_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, help="0 takes a free one.")
@click.option("--allow-remote", is_flag=True, help="Let other machines in; with --token-file only.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A name in Host that is let in on loopback.")
@click.option("--token-file", metavar="FILE", help="Ask for a token of this file (lepton deploy token).")
@click.option("--tls-cert", metavar="FILE.pem", help="Certificate chain: speak https.")
@click.option("--tls-key", metavar="FILE.pem", help="Its private key.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of torch (default: torch's choice).")
@click.option("--max-batch", type=int, metavar="ROWS", help="Rows that are computed together; a power of two (64).")
@click.option("--max-wait", type=float, metavar="MS", help="Wait so long for more rows while the model is idle (0).")
@click.option("--max-rows", type=int, metavar="ROWS", help="Rows of one request (256).")
@click.option("--max-queue", type=int, metavar="ROWS", help="Rows that may wait; more are told 429 (4,096).")
@click.option("--max-body", type=int, metavar="MIB", help="Of one request's body (16).")
@click.option("--max-connections", type=int, help="Open at a time (2,048).")
@click.option(
    "--drain-wait", type=float, metavar="SECONDS", help="After SIGTERM, go on so long while /readyz says 503."
)
@click.option("--drain", type=float, metavar="SECONDS", help="Then wait so long for requests under way (30).")
@click.option("--access-log", metavar="FILE", help="One JSON object for every request; - is stderr (default: none).")
@json_option
def serve(
    model: str,
    store: str | None,
    host: str,
    port: int,
    allow_remote: bool,
    hosts: tuple[str, ...],
    token_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    threads: int | None,
    max_body: int | None,
    access_log: str | None,
    as_json: bool,
    **bounds: Any,
) -> None:
    """Answer requests with a deployed MODEL: POST /predict, GET /schema, /metrics, /healthz, /readyz.

    Rows of requests that come together are computed together. Only this machine is let in, unless --allow-remote and
    --token-file are given. SIGTERM lets requests that are under way finish. docs/serving.md says what bodies look like.

    \b
    Example:
      lepton deploy serve mnist-cnn
      curl --data-binary @seven.png -H "content-type: image/png" localhost:8471/predict
      lepton deploy serve mnist-cnn --host 0.0.0.0 --allow-remote --token-file tokens.json
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("give --tls-cert and --tls-key together")
    ready_torch()
    from trainers.bundle import load_bundle
    from trainers.serving.model import Served
    from trainers.serving.server import ModelServer

    with open_store(store) as opened:
        served = Served.of(load_bundle(opened, model))
    logging.basicConfig(level=logging.WARNING, format="lepton: %(message)s", stream=sys.stderr)
    log = None if access_log is None else sys.stderr if access_log == "-" else _log_file(access_log)
    server = ModelServer(
        served,
        _limits(max_body, bounds),
        host=host,
        port=port,
        token_file=token_file,
        allow_remote=allow_remote,
        allow_hosts=hosts,
        tls=(tls_cert, tls_key) if tls_cert and tls_key else None,
        threads=threads,
        access=None if log is None else lambda line: print(line, file=log, flush=True),
    )
    told = {"model": served.name, "commit": served.commit, "url": server.url, "host": server.host, "port": server.port}

    def ready() -> None:
        emit(told, as_json, f"model {served.name} {served.commit[:12]} answers at {server.url}/predict")
        sys.stdout.flush()

    server.run(ready)


@deploy.command("export")
@click.argument("model", metavar="MODEL")
@store_option
@click.option("--onnx", "path", metavar="FILE.onnx", required=True, help="Where to write it; replaced when it exists.")
@json_option
def export(model: str, store: str | None, path: str, as_json: bool) -> None:
    """Write a deployed MODEL as ONNX, for runtimes without torch, and check with onnxruntime that it computes the same.

    \b
    Example:
      lepton deploy export mnist-cnn --onnx mnist.onnx
    """
    ready_torch()
    from trainers.bundle import load_bundle
    from trainers.onnx_file import write_onnx

    with open_store(store) as opened:
        bundle = load_bundle(opened, model)
    made = write_onnx(bundle, path)
    told = {"model": bundle.name, "commit": bundle.commit, **made}
    size = f"{made['bytes']:,} bytes, opset {made['opset']}"
    emit(told, as_json, f"{path} is model {bundle.name}: {size}; outputs agree to {made['relative_difference']:.1e}")


@deploy.command("token")
@click.argument("file", metavar="FILE")
@click.argument("name", metavar="NAME")
@click.option("--expires", metavar="TIME", help="Such as 12h or 90d (default: never).")
@click.option("--remove", is_flag=True, help="Take the token of this name away; a running server heeds it at once.")
@json_option
def token(file: str, name: str, expires: str | None, remove: bool, as_json: bool) -> None:
    """Make a token for `lepton deploy serve --token-file FILE`, and print it: FILE keeps only its hash.

    \b
    Example:
      lepton deploy token tokens.json ci --expires 90d
      lepton deploy token tokens.json ci --remove
    """
    from trainers.serving.tokens import add_token, remove_token

    if remove:
        remove_token(file, name)
        emit({"file": file, "name": name, "removed": True}, as_json, f"{name} is let in no more")
        return
    lifetime_s = None if expires is None else lifetime_of(expires)
    made = add_token(file, name, None if lifetime_s is None else timedelta(seconds=lifetime_s))
    emit({"file": file, "name": name, "token": made}, as_json, made)


def _limits(max_body: int | None, bounds: dict[str, Any]) -> Any:
    from leptonstore.limits import MIB
    from trainers.serving.limits import ServeLimits

    names = {
        "max_batch": "batch_rows",
        "max_wait": "wait_ms",
        "max_rows": "rows_max",
        "max_queue": "queue_rows_max",
        "max_connections": "connections_max",
        "drain_wait": "drain_wait_s",
        "drain": "drain_s",
    }
    given = {names[name]: value for name, value in bounds.items() if value is not None}
    if max_body is not None:
        given["body_bytes_max"] = max_body * MIB
    return ServeLimits(**given)


def _log_file(path: str) -> Any:
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write the log {path}: {error.strerror}") from None
