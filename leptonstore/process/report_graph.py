"""Where a version comes from, as a picture: boxes for versions and source files, lines from what was made to what it was made of.

Boxes stand in ranks: a version one rank further than the furthest that was made from it. The same ranks are laid out from left to right
for wide pages and from top to bottom for narrow ones. Pure: no I/O; texts are cut to their boxes, and full ones stand in titles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leptonstore.dataset.lineage import Link
from leptonstore.process.charts import Drawn, as_bytes, whole

BOX_WIDTH, BOX_HEIGHT = 148, 58
GAP_ALONG, GAP_ACROSS = 34, 14  # between ranks, and between the boxes of a rank
CHARS_MAX = 20  # of a line in a box, in the font of the page


@dataclass(frozen=True)
class Box:
    """x, y: of its upper left corner. lines: name, what made it, how many rows; title: all of it."""

    x: int
    y: int
    lines: Sequence[str]
    title: str
    kind: str  # "head" | "version" | "files" | "missing" | "more"


@dataclass(frozen=True)
class Graph:
    """Boxes, and paths between them that end in arrow heads. summary: what a screen reader says."""

    width: int
    height: int
    boxes: Sequence[Box]
    paths: Sequence[Drawn]
    summary: str


@dataclass(frozen=True)
class _Node:
    key: str
    lines: tuple[str, ...]
    title: str
    kind: str
    sources: tuple[str, ...]


def graphs(links: Sequence[Link], more: int = 0) -> list[Graph]:
    """The picture of a chain (dataset/lineage.py), wide and narrow; none of a version that comes from nothing."""
    nodes = _nodes(links, more)
    if len(nodes) < 2:
        return []
    ranks = _ranks(nodes)
    told = "; ".join(f"{nodes[key].title} comes from {_joined(nodes, key)}" for key in nodes if nodes[key].sources)
    return [_laid_out(nodes, ranks, across, told) for across in (False, True)]


def _joined(nodes: dict[str, _Node], key: str) -> str:
    return " and ".join(nodes[one].title for one in nodes[key].sources)


def _nodes(links: Sequence[Link], more: int) -> dict[str, _Node]:
    shown = {link.digest for link in links}
    nodes: dict[str, _Node] = {}
    for at, link in enumerate(links):
        sources = [origin.commit for origin in link.origins if origin.commit in shown]
        files = link.files
        if len(sources) < len(link.origins) and more:
            sources.append("more")
        if files:
            sources.append(f"files {link.digest}")
        rows = "missing" if link.commit is None else f"{whole(link.commit.rows)} rows"
        what = "" if link.commit is None else link.operation
        name = _name(link)
        title = f"{name or 'a version'} {link.digest[:12]}, {', '.join(part for part in (what, rows) if part)}"
        kind = "head" if at == 0 else "missing" if link.commit is None else "version"
        lines = (name or link.digest[:12], what, f"{link.digest[:8]}, {rows}")
        nodes[link.digest] = _Node(link.digest, lines, title, kind, tuple(dict.fromkeys(sources)))
        if files:
            nodes[f"files {link.digest}"] = _files(link, files)
    if any("more" in node.sources for node in nodes.values()):
        said = f"{whole(more)} earlier"
        nodes["more"] = _Node("more", (said, "not shown"), f"{said} versions that are not shown", "more", ())
    return nodes


def _name(link: Link) -> str:
    """NAME@REF, by a ref that leads to it where there is one, else NAME."""
    name, _, ref = link.name.partition("@")
    mine = [one for one in link.refs if one.startswith(f"{name}@")]
    return (
        link.name if link.name in link.refs else mine[0] if mine else name if link.digest.startswith(ref) else link.name
    )


def _files(link: Link, files: Sequence[dict[str, Any]]) -> _Node:
    names = [str(one["name"]) for one in files]
    size = sum(one["bytes"] for one in files if isinstance(one.get("bytes"), int))
    first = names[0].rpartition("/")[2] or names[0]
    lines = (
        first,
        "1 file" if len(files) == 1 else f"and {whole(len(files) - 1)} more files",
        as_bytes(size) if size else "",
    )
    title = f"{whole(len(files))} source file{'' if len(files) == 1 else 's'}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
    return _Node(f"files {link.digest}", lines, title, "files", ())


def _ranks(nodes: dict[str, _Node]) -> dict[str, tuple[int, int]]:
    """(rank, place in it) of every node: a rank more than the furthest that was made from it. History has no cycles."""
    rank = dict.fromkeys(nodes, 0)
    for _ in nodes:  # as many rounds as the longest chain has links, at most
        changed = False
        for key, node in nodes.items():
            for source in node.sources:
                if rank[source] < rank[key] + 1:
                    rank[source], changed = rank[key] + 1, True
        if not changed:
            break
    filled: dict[int, int] = {}
    places = {}
    for key in sorted(nodes, key=lambda one: nodes[one].kind in ("files", "more")):  # versions keep to the first lanes
        places[key] = (rank[key], filled.get(rank[key], 0))
        filled[rank[key]] = places[key][1] + 1
    return places


def _laid_out(nodes: dict[str, _Node], ranks: dict[str, tuple[int, int]], across: bool, summary: str) -> Graph:
    """across: ranks from left to right; else from top to bottom."""
    last = max(rank for rank, _ in ranks.values())
    lanes = max(lane for _, lane in ranks.values())
    step = (
        (BOX_WIDTH + GAP_ALONG, BOX_HEIGHT + GAP_ACROSS) if across else (BOX_WIDTH + GAP_ACROSS, BOX_HEIGHT + GAP_ALONG)
    )

    def corner(key: str) -> tuple[int, int]:
        rank, lane = ranks[key]
        x, y = (rank, lane) if across else (lane, rank)
        return 1 + x * step[0], 1 + y * step[1]

    boxes = [
        Box(*corner(key), [_cut(line) for line in node.lines if line], node.title, node.kind)
        for key, node in nodes.items()
    ]
    paths = [
        Drawn(_path(corner(key), corner(source), across)) for key, node in nodes.items() for source in node.sources
    ]
    width, height = (last, lanes) if across else (lanes, last)
    size = (2 + width * step[0] + BOX_WIDTH, 2 + height * step[1] + BOX_HEIGHT)
    return Graph(*size, boxes, paths, summary)


def _path(made: tuple[int, int], source: tuple[int, int], across: bool) -> str:
    """A curve from what was made to its source, with the head of an arrow at what was made: data flows there."""
    if across:
        x, y = made[0] + BOX_WIDTH, made[1] + BOX_HEIGHT // 2
        to_x, to_y = source[0], source[1] + BOX_HEIGHT // 2
        bend = GAP_ALONG // 2
        return f"M{x + 1} {y}l6 -4M{x + 1} {y}l6 4M{x + 1} {y}C{x + bend} {y} {x + bend} {to_y} {x + GAP_ALONG} {to_y}L{to_x} {to_y}"
    x, y = made[0] + BOX_WIDTH // 2, made[1] + BOX_HEIGHT
    to_x, to_y = source[0] + BOX_WIDTH // 2, source[1]
    bend = GAP_ALONG // 2
    return f"M{x} {y + 1}l-4 6M{x} {y + 1}l4 6M{x} {y + 1}C{x} {y + bend} {to_x} {y + bend} {to_x} {y + GAP_ALONG}L{to_x} {to_y}"


def _cut(text: str) -> str:
    return text if len(text) <= CHARS_MAX else text[: CHARS_MAX - 1] + "…"
