"""report.html of a model bundle: what was trained, on which data, with which results. One file, without scripts or anything to fetch.

It depends on the checkpoint alone, so that the same checkpoint gives the same bundle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from torch import nn

from trainers.tasks import Task

CLASSES_SHOWN = 200  # of their names
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border-bottom:1px solid #ddd;padding:.25rem .9rem .25rem 0;"
    "text-align:left;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}"
    "pre{background:#f6f6f6;padding:1rem;overflow:auto}h2{margin-top:2rem}"
)


def report_html(name: str, task: Task, model: nn.Module, lineage: Mapping[str, Any]) -> bytes:
    """UTF-8. `lineage` is that of the bundle's commit."""
    checkpoint, data = lineage["checkpoint"], lineage["data"]["training"]
    classes = getattr(task, "classes", ())
    facts = [
        ("model", name),
        ("what", task.describe()),
        ("trained on", f"{data['name']} {str(data['commit'])[:12]}"),
        ("run", f"{checkpoint['run']}, {checkpoint['branch']}"),
        ("weights", str(lineage["weights"])),
        ("made by", f"leptonstore {lineage['code']['leptonstore']}"),
    ]
    parts = [
        f"<h1>{escape(name)}</h1>",
        _table(facts),
        "<h2>Results</h2>",
        _table(_flat(lineage["metrics"])) if lineage["metrics"] else "<p>No epoch was finished.</p>",
        "<h2>Parameters</h2>",
        _table(_layers(model), ("part", "parameters")),
    ]
    if classes:
        more = f" and {len(classes) - CLASSES_SHOWN:,} more" if len(classes) > CLASSES_SHOWN else ""
        parts += ["<h2>Classes</h2>", f"<p>{escape(', '.join(classes[:CLASSES_SHOWN]) + more)}</p>"]
    config = json.dumps(lineage["config"], indent=2, sort_keys=True, ensure_ascii=False)
    parts += ["<h2>Configuration</h2>", f"<pre>{escape(config)}</pre>", "<h2>Environment</h2>"]
    parts.append(_table(_flat(lineage["environment"])))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(name)}</title><style>{_STYLE}</style>'
    return (head + "\n".join(parts) + "\n</html>\n").encode()


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Parameters of each part of the network, and of all."""
    network = getattr(model, "network", model)
    rows = [
        (f"{name} ({type(part).__name__})", sum(one.numel() for one in part.parameters()))
        for name, part in network.named_children()
    ]
    return [*rows, ("all", sum(one.numel() for one in model.parameters()))]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):  # a confusion matrix is no line of a table
            rows.append((f"{prefix}{key}", value))
    return rows


def _table(rows: Iterable[tuple[str, Any]], head: tuple[str, ...] = ()) -> str:
    lines = ["".join(f"<th>{escape(one)}</th>" for one in head)] if head else []
    for name, value in rows:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        told = f"{value:,}" if isinstance(value, int) and number else f"{value:.6g}" if number else str(value)
        lines.append(f"<td>{escape(name)}</td><td{' class=n' if number else ''}>{escape(told)}</td>")
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
