"""Every code block of the documentation: found, looked at and run here; the tests are in test_docs_blocks.py.

A page is a Markdown file below docs/, or a README of the repository. Its fenced blocks are run in the order of the page, in one
namespace, in an empty directory of their own. A block's language says what becomes of it:

    python      is run
    bash        lines of `lepton …`, `export NAME=…` and `cd …` in this process; a block with anything else by one bash
    console     as bash: lines that begin with "$ "; the others are what such a command prints, and are not compared
    toml        a pipeline (also planned, where its dataset is there), a training's configuration or a daemon's settings: as its keys say
    json        is parsed
    text        what is no code: byte diagrams, listings. A command in it is an error

A block whose first line is `# NAME.py`, or .toml, .csv, .txt, is the file of that name: it is written to the directory, for later blocks to
import or to name. (Of a Python block that is all; a TOML block is looked at, too.)

How a page states its setting. Most pages that teach should need none: they make what they use, in blocks that the reader sees. One that
says "`ds` is a dataset of 1,000 images" has a module beside this one, tests/integration/pages/orders.py for docs/orders.md and
tests/integration/pages/how_to/s3.py for docs/how-to/s3.md:

    def setting(place, bucket_url):              # what follows `place` are names of pytest's fixtures
        place.names["ds"] = place.write("samples", table)
        yield                                    # the blocks of the page run
        assert place.names["report"].counts() == {...}

`place.store` is a store in ./.lepton, where `lepton` looks for one. A page whose libraries want a process of their own sets `OWN_PROCESS`,
the environment of that process; its setting has no fixtures. `EXTRAS` names modules without which the page is skipped.

A block that cannot be run says why, in a comment right above it, in words of `REASONS` (a semicolon, and more words, may follow):

    <!-- not run: needs a GPU -->

and for all blocks of a page, somewhere above the first: <!-- no block of this page is run: a list of commands -->. Such a block is
still looked at: Python compiles, TOML and JSON parse. The options of every `lepton` command, also of those in prose, are looked up
without running it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import click
import pyarrow as pa
from click.testing import CliRunner
from markdown_it import MarkdownIt

from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("python", "bash", "console", "toml", "json", "text")
REASONS = (
    "needs a GPU",
    "needs several machines",
    "needs a bucket of yours",
    "needs a service of yours",
    "installs packages",
    "runs until it is stopped",
    "asks the user",
    "what a run printed",
    "part of a program",
    "a list of commands",
    "run by another test",  # which one is said after the semicolon
)
BLOCK_S_MAX = 300
_NOT_RUN = re.compile(r"<!-- not run: (.*?) -->\s*\Z", re.DOTALL)
_NO_BLOCK = re.compile(r"<!-- no block of this page is run: (.*?) -->")
_FILE = re.compile(r"# ([\w./-]+\.(?:py|toml|csv|txt))(?:$|[: ])")
_COMMAND = re.compile(r"(\$ )?(lepton|python|pip|torchrun|curl|export) \S|(import \w+$|from \w[\w.]* import )")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its first line of code, from 1. reason: why it is not run."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        """Where it stands: docs/page.md:LINE."""
        return f"{shown(self.page)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        found = _FILE.match(self.text.partition("\n")[0]) if self.language in ("python", "toml", "text") else None
        return found[1] if found else None

    def code(self) -> CodeType:
        """Compiled, so that a traceback names the page and its line."""
        return compile("\n" * (self.line - 1) + self.text, str(self.page), "exec", dont_inherit=True)

    def commands(self) -> str:
        """The shell commands of a block, without prompts and what they print."""
        if self.language == "console":
            return "".join(line[2:] + "\n" for line in self.text.splitlines() if line.startswith("$ "))
        return self.text if self.language == "bash" else ""


@dataclass(frozen=True)
class Page:
    """What of a page can be run or looked up. spoken: commands in its prose. indented: lines of code that is no fenced block."""

    path: Path
    blocks: list[Block]
    spoken: list[str]
    indented: list[int]


def pages() -> list[Path]:
    """All of them. README.zh-CN.md has README's blocks (a test compares them)."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown(page: Path) -> str:
    """Its path in the repository."""
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def read(path: Path) -> Page:
    """A page taken apart."""
    text = path.read_text()
    every = _NO_BLOCK.search(text)
    blocks, spoken, indented, before = list[Block](), list[str](), list[int](), ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "fence":
            assert token.map is not None
            said = _NOT_RUN.search(before)
            reason = said[1] if said else every[1] if every else _reason_beside(path, token.content)
            language = token.info.strip() or (_guessed(token.content) if path.parent == ROOT else "")
            blocks.append(Block(path, token.map[0] + 2, language, token.content, reason))
        elif token.type == "code_block":
            assert token.map is not None
            indented.append(token.map[0] + 1)
        elif token.type == "inline":
            codes = [child.content for child in token.children or () if child.type == "code_inline"]
            spoken += [code for code in codes if code.startswith("lepton ")]
        before = token.content if token.type == "html_block" else ""
    return Page(path, blocks, spoken, indented)


def _reason_beside(path: Path, text: str) -> str | None:
    """Of a page that is to have no comments (the README): `NOT_RUN` of its setting, reasons by how a block begins."""
    given: Mapping[str, str] = getattr(settings_of(path), "NOT_RUN", {}) if path.parent == ROOT else {}
    return next((reason for begin, reason in given.items() if text.startswith(begin)), None)


def _guessed(text: str) -> str:
    """The language of a block of a README that names none."""
    return "bash" if text.startswith("lepton ") else "text"


# What is looked up, run or not.


def wrong(block: Block) -> Iterator[str]:
    """What can be said against a block without running it."""
    if block.language not in LANGUAGES:
        yield f"{block.place}: a block of {block.language or 'no language'!r}: there are {', '.join(LANGUAGES)}"
    elif block.reason is not None:
        kind, _, more = block.reason.partition(";")
        if kind not in REASONS:
            yield f"{block.place}: not run: {kind!r}; reasons are: {', '.join(REASONS)}"
        if kind == REASONS[-1] and not (ROOT / more.strip()).is_file():
            yield f"{block.place}: not run: there is no test {more.strip()!r}"
    if block.language == "text":
        yield from (f"{block.place}: {line!r} in a text" for line in block.text.splitlines() if _COMMAND.match(line))
    parsers: dict[str, Callable[[], object]] = {
        "python": block.code,
        "json": lambda: json.loads(block.text),
        "toml": lambda: tomllib.loads(block.text),
    }
    if block.language in parsers:
        try:
            parsers[block.language]()
        except (SyntaxError, ValueError) as error:
            yield f"{block.place}: {error}"
    for command in commands(block.commands()):
        yield from (f"{block.place}: {told}" for told in unknown(command))


def commands(script: str) -> Iterator[list[str]]:
    """The `lepton` and `python -m` commands in a script, each as its words."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        try:
            for word in [*words, ";"]:
                if set(word) <= set("();<>|&"):
                    yield from [command] if command else []
                    command = []
                elif command or word in ("lepton", "python", "torchrun"):
                    command.append(word)
        except ValueError:  # a quotation over several lines
            continue


def unknown(words: list[str]) -> Iterator[str]:
    """Commands, options and modules of a command line that do not exist."""
    if words[0] != "lepton":
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        ours = module.partition(".")[0] in ("leptonstore", "loaders", "trainers", "bench", "tests")
        if ours and importlib.util.find_spec(module) is None:
            yield f"no module {module}"
        return
    command: click.Command = lepton
    context = click.Context(lepton, info_name="lepton")
    for word in words[1:]:
        if word == "--":
            return
        if re.match(r"--?[a-zA-Z]", word):
            known = _options(command, context) | _options(_below(command, context, "RUN"), context)
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            if name not in known | {"-h", "--help"}:
                yield f"`{context.command_path}` has no option {name}"
        elif isinstance(command, click.Group):
            if word.isupper() or not word.isascii() or word == "...":
                return  # `lepton COMMAND`
            below = _below(command, context, word)
            if below is None:
                yield f"`{context.command_path}` has no command {word!r}"
                return
            command, context = below, click.Context(below, info_name=word, parent=context)


def _below(command: click.Command, context: click.Context, name: str) -> click.Command | None:
    """The command `name` of a group, or the one that a group has for what is no command (`lepton deploy RUN`)."""
    if not isinstance(command, click.Group):
        return None
    try:
        return command.resolve_command(context, [name])[1]
    except click.UsageError:
        return None


def _options(command: click.Command | None, context: click.Context) -> set[str]:
    params = [] if command is None else command.get_params(context)
    return {name for one in params for name in (*one.opts, *one.secondary_opts)}


# Running.


@dataclass
class Place:
    """Where a page runs. folder: the directory of its commands. names: what its Python blocks know. said: what its commands printed."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    said: str = ""

    @cached_property
    def store(self) -> Store:
        """A new store in ./.lepton."""
        return Store.create(self.folder / ".lepton")

    def write(self, name: str, table: pa.Table, *identity: str) -> Dataset:
        """A dataset in it, of a table, whose rows these columns tell apart (without any: the first)."""
        kept = identity or table.schema.names[:1]
        return write_dataset(self.store, name, Source(table.schema, tuple(kept), table.to_batches, len(table)))


def settings_of(page: Path) -> ModuleType | None:
    """The module of a page's setting."""
    name = shown(page.with_suffix("")).removeprefix("docs/").replace("-", "_").replace("/", ".").lower()
    name = f"tests.integration.pages.{name}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        return None


def run_page(page: Path, folder: Path, fixture: Callable[[str], Any] | None = None) -> Place:
    """Run the blocks of a page in its setting, in `folder`. fixture: gives those of pytest by their names."""
    place = Place(folder)
    made = getattr(settings_of(page), "setting", None)
    before, modules, environment = Path.cwd(), set(sys.modules), dict(os.environ)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.ExitStack() as stack:
            if made is not None:
                given = [fixture(name) for name in list(inspect.signature(made).parameters)[1:] if fixture]
                stack.enter_context(contextlib.contextmanager(made)(place, *given))
            for block in read(page).blocks:
                if block.reason is None:
                    try:
                        run_block(block, place)
                    except Exception as error:
                        error.add_note(f"in the block at {block.place}")
                        raise
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        os.environ.clear()
        os.environ.update(environment)
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
        if "store" in place.__dict__:
            place.store.close()
    return place


def run_block(block: Block, place: Place) -> None:
    """One block. Raises what its code raises; AssertionError of a command that fails, with what it said."""
    if block.file is not None:
        path = place.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        importlib.invalidate_caches()
    if block.language == "python" and block.file is None:
        exec(block.code(), place.names)
    elif block.language in ("bash", "console"):
        _run_script(block, place)
        if "store" in place.__dict__:
            place.store.refresh()
    elif block.language == "toml":
        _look_at(block, place)


def _run_script(block: Block, place: Place) -> None:
    script = block.commands()
    lines = [line for line in script.replace("\\\n", " ").splitlines() if line.split("#")[0].strip()]
    if not all(map(_is_plain, lines)):
        _run_bash(script, place)
        return
    for line in lines:
        command, *words = shlex.split(line, comments=True)
        if command == "cd":
            os.chdir(words[0])
        elif command == "export":
            name, _, value = words[0].partition("=")
            os.environ[name] = value
        else:
            done = CliRunner().invoke(lepton, words, prog_name="lepton")
            place.said += done.output
            if done.exit_code:
                raise AssertionError(f"`{line.strip()}`: {done.output}\n{done.exception!r}") from done.exception


def _is_plain(line: str) -> bool:
    """A line that needs no shell."""
    plain = shlex.shlex(line, posix=True, punctuation_chars=True)
    plain.whitespace_split = True
    try:
        words = list(plain)
    except ValueError:
        return False
    bare = re.sub(r"'[^']*'", "", line)
    if any(set(word) <= set("();<>|&") for word in words) or re.search(r"[$`*?~]", bare.split(" #")[0]):
        return False
    return words[0] == "lepton" or (words[0] in ("cd", "export") and len(words) == 2)


def _run_bash(script: str, place: Place) -> None:
    told = place.folder / ".environment"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'{script}\nenv -0 > "{told}"'],
        env={**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([str(place.folder), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=BLOCK_S_MAX,
        check=False,
    )
    place.said += done.stdout
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    variables = dict(pair.split("=", 1) for pair in told.read_text().split("\0") if pair)
    told.unlink()
    os.chdir(variables["PWD"])
    os.environ.update({name: value for name, value in variables.items() if name not in ("_", "PATH", "PYTHONPATH")})


def _look_at(block: Block, place: Place) -> None:
    """What a TOML block is, it must be."""
    told = tomllib.loads(block.text)
    if "operation" in told:
        from leptonstore.errors import NotFound
        from leptonstore.process.pipeline_file import parse_pipeline

        whole = block.text if "dataset" in told else f'dataset = "it"\n{block.text}'
        pipeline = parse_pipeline(whole, block.place)
        if "store" in place.__dict__ or (place.folder / ".lepton").exists():
            with contextlib.suppress(NotFound), Store.open(place.folder / ".lepton") as store:
                pipeline.plan(store)
    elif told.keys() & {"host", "tls-cert", "drain-wait", "members", "store"}:
        from leptonstore.daemon.settings import read_config

        path = place.folder / "serve.toml"
        path.write_text(block.text)
        read_config(path)
    else:
        from trainers.config import from_dict

        from_dict(told)


def run_in_own_process(page: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """As `run_page`, in a process with these variables too."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.docs_blocks", str(page), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BLOCK_S_MAX,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{shown(page)}: {done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        run_page(Path(sys.argv[1]), Path(sys.argv[2]))
