"""Every code block of the documentation runs, or says visibly why it does not; every command that a page names exists (docs_blocks.py)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.integration import docs_blocks
from tests.integration.docs_blocks import Page, pages, read, run_in_own_process, run_page, settings_of, shown

PAGES = pages()


def code_of(page: Page) -> list[docs_blocks.Block]:
    return [block for block in page.blocks if block.language != "text"]


WITH_CODE = [page for page in PAGES if any(block.reason is None for block in code_of(read(page)))]


def told_of(page: Page) -> list[str]:
    """All that is wrong with a page without running it."""
    found = [line for block in page.blocks for line in docs_blocks.wrong(block)]
    found += [f"{shown(page.path)}:{line}: indented code is not run: fence it" for line in page.indented]
    spoken = [words for text in page.spoken for words in docs_blocks.commands(text)]
    return found + [f"{shown(page.path)}: {line}" for words in spoken for line in docs_blocks.unknown(words)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_blocks_have_a_language_and_commands_exist(page: Path) -> None:
    assert told_of(read(page)) == []


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("page", WITH_CODE, ids=shown)
def test_the_blocks_of_a_page_run(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    settings = settings_of(page)
    lacking = [name for name in getattr(settings, "EXTRAS", ()) if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")
    folder = tmp_path / "page"
    folder.mkdir()
    own = getattr(settings, "OWN_PROCESS", None)
    if own is None:
        run_page(page, folder, request.getfixturevalue)
    else:
        run_in_own_process(page, folder, own)


def test_few_blocks_are_not_run() -> None:
    blocks = [block for page in PAGES if page.name != "cli.md" for block in code_of(read(page))]
    left_out = [block.place for block in blocks if block.reason is not None]
    assert len(left_out) <= len(blocks) / 5, left_out


def test_every_setting_is_of_a_page() -> None:
    folder = Path(docs_blocks.__file__).parent / "pages"
    used = {settings.__file__ for page in PAGES if (settings := settings_of(page)) is not None}
    assert {str(path) for path in folder.rglob("*.py")} == used


# What these tests promise, tested on pages that are made up.


def made_up(folder: Path, text: str) -> Page:
    path = folder / "page.md"
    path.write_text(text)
    return read(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```\nx\n```\n", "no language"),
        ("```python notest\nx\n```\n", "'python notest'"),
        ("```python\nx = = 1\n```\n", "invalid syntax"),
        ("```toml\na = = 1\n```\n", "Invalid value"),
        ("<!-- not run: no time -->\n\n```python\nx = 1\n```\n", "reasons are"),
        ("```text\nlepton ls\n```\n", "in a text"),
        ("Do it:\n\n    lepton ls\n", "fence it"),
        ("```bash\nlepton lss\n```\n", "no command 'lss'"),
        (
            "```bash\nlepton ls; A=1 lepton token add x --gramt read | cat\n```\n",
            "`lepton token add` has no option --gramt",
        ),
        ("```console\n$ lepton ls --color\n```\n", "no option --color"),
        ("- in a list\n\n    ```bash\n    lepton ls -Q\n    ```\n", "no option -Q"),
        ("Say `lepton import --formats csv`.\n", "no option --formats"),
        ("```bash\npython -m trainers.nothing\n```\n", "no module trainers.nothing"),
    ],
)
def test_what_is_wrong_with_a_page_is_told(tmp_path: Path, text: str, told: str) -> None:
    (found,) = told_of(made_up(tmp_path, text))
    assert told in found


def test_a_block_that_is_not_run_is_still_looked_at(tmp_path: Path) -> None:
    page = made_up(tmp_path, "<!-- not run: needs a GPU; ours have none -->\n\n```python\nraise ValueError\n```\n")
    assert told_of(page) == []
    run_page(page.path, tmp_path)
    page = made_up(tmp_path, "<!-- not run: needs a GPU -->\n\n```python\nraise = 1\n```\n")
    assert told_of(page)


def test_blocks_run_in_order_in_one_place(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    before, environment = Path.cwd(), dict(os.environ)
    page = made_up(
        tmp_path,
        "```bash\nlepton init  # here\nexport LEPTON_PLACE=below\nlepton ls\n```\n"
        "```bash\nmkdir $LEPTON_PLACE; cd $LEPTON_PLACE\nLEPTON_STORE=../.lepton lepton ls > seen.txt\n```\n"
        "```python\n# mine.py\nvalue = 6\n```\n"
        "```python\nfrom pathlib import Path\nfrom mine import value\nassert Path('seen.txt').exists()\nvalue += 1\n```\n"
        "```python\nassert value == 7 and Path.cwd().name == 'below'\n```\n",
    )
    assert told_of(page) == []
    assert run_page(page.path, folder).names["value"] == 7
    assert (Path.cwd(), dict(os.environ)) == (before, environment)


@pytest.mark.parametrize(
    "text",
    [
        "```python\nassert 1 == 2\n```\n",
        "```bash\nlepton ls --store nowhere\n```\n",
        "```bash\nfalse | true\n```\n",
        '```toml\n[[operation]]\nuse = "image.resise"\n```\n',
        "```toml\nepoch = 1\n```\n",
    ],
)
def test_a_block_that_fails_fails(tmp_path: Path, text: str) -> None:
    with pytest.raises(Exception) as raised:
        run_page(made_up(tmp_path, text).path, tmp_path)
    assert raised.value.__notes__ == ["in the block at page.md:2"]
