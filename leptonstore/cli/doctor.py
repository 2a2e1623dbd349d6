"""lepton doctor"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import click

from leptonstore.cli.group import EntryGroup
from leptonstore.cli.runtime import emit, human_bytes, json_option, store_option, store_url
from leptonstore.store.index import cache_home
from leptonstore.version import __version__

_PARTS = {
    "core": ("pyarrow", "zstandard", "blake3", "fsspec", "lmdb", "pyfastcdc", "numpy"),
    "cli": ("click", "rich"),
    "process": ("pillow", "scikit-learn", "jinja2"),
    "train": ("torch", "safetensors"),
    "serve": ("starlette", "uvicorn", "prometheus-client"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}


_SUMMARIES = {"loader": "Find what slows a loader down, and the change that helps most."}


class _Doctor(EntryGroup):
    """What looks at one thing closely is an entry point: loaders registers its own, and cli imports no loaders."""

    entries = "lepton.doctor"
    summaries: Mapping[str, str] = _SUMMARIES


@click.group("doctor", cls=_Doctor, invoke_without_command=True)
@store_option
@json_option
@click.pass_context
def command(context: click.Context, store: str | None, as_json: bool) -> None:
    """Show what this machine has: devices, codecs, versions, places. With a COMMAND: look at one thing closely.

    \b
    Example:
      lepton doctor --json
      lepton doctor loader mnist --batch-size 256 --shuffle
    """
    if context.invoked_subcommand is not None:
        return
    found = examine(store_url(store))

    def text() -> None:
        for section, values in found.items():
            click.echo(f"{section}")
            for key, value in values.items():
                click.echo(f"  {key:<16} {value}")

    emit(found, as_json, text)


def examine(store: str) -> dict[str, dict[str, Any]]:
    """Section -> {thing: what is known of it}. Imports torch only when it is installed."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory": human_bytes(pages),
        },
        "python": {"version": platform.python_version(), "leptonstore": __version__, "executable": sys.executable},
        **{extra: {name: _version(name, extra) for name in names} for extra, names in _PARTS.items()},
        "devices": _devices(),
        "places": {
            **_store_place(store),
            "index": str(cache_home() / "lepton"),
        },
    }


def _store_place(store: str) -> dict[str, str]:
    """Where the store is. Of a URL nothing more: doctor looks at this machine, and asks no other."""
    if "://" in store:
        return {"store": store}
    path = os.path.abspath(store)
    free = shutil.disk_usage(os.path.dirname(path)).free
    return {"store": f"{path} ({'is there' if os.path.exists(path) else 'not made yet'})", "free": human_bytes(free)}


def _version(name: str, extra: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f'missing: pip install "leptonstore[{extra}]"'


def _devices() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"cpu": "yes", "others": "unknown without torch"}
    # By name: leptonstore does not depend on torch, it only asks the one that is there.
    torch = importlib.import_module("torch")
    return {
        "cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "mps": "yes" if torch.backends.mps.is_available() else "none",
    }
