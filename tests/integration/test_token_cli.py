"""lepton token: on a store, and through its daemon, where what it did holds at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from leptonstore.cli.runtime import run
from leptonstore.cli.token import command
from leptonstore.dataset import Source, write_dataset
from leptonstore.errors import LeptonError, NotAuthenticated, NotFound, NotPermitted
from leptonstore.store import Store
from leptonstore.testing.daemon import Served, running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    place = tmp_path_factory.mktemp("tokens")
    table = pa.table({"id": [1]})
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            patch.setenv(variable, str(place / variable.lower()))
        with Store.create(place / "store") as store:
            write_dataset(store, "birds", Source(table.schema, ("id",), lambda: iter(table.to_batches())))
        with running(place / "store", in_process=True, cache_bytes=0, audit_log=str(place / "audit")) as made:
            yield made


def lepton(*arguments: str, token: str | None = None) -> dict[str, Any]:
    """What --json says; raises the error."""
    runner = CliRunner(env={"LEPTON_TOKEN": token})
    result = runner.invoke(command, [*arguments, "--json"], catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    told: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return told


def place_of(served: Served) -> str:
    assert served.daemon is not None
    return served.daemon.settings.store


@pytest.mark.parametrize("through", ["store", "daemon"])
def test_a_token_is_made_listed_and_revoked(served: Served, through: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = place_of(served) if through == "store" else served.url
    made = lepton("add", url, "--name", through, "--grant", "read:birds", "--expires", "12h", token=served.token)
    assert made["token"]["grants"] == ["read:birds"] and not made["token"]["expired"]
    listed = lepton("ls", url, token=served.token)
    assert made["token"] in listed["tokens"] and made["secret"] not in json.dumps(listed)
    monkeypatch.setenv("LEPTON_TOKEN", made["secret"])
    with Store.open(served.url) as opened:
        opened.refresh()
        assert lepton("revoke", url, through, token=served.token)["revoked"]
        with pytest.raises(NotAuthenticated):  # over the connection that it has
            opened.refresh()
    with pytest.raises(NotFound):
        lepton("revoke", url, through, token=served.token)


def test_who_administers_a_dataset_gives_and_takes_what_is_theirs(served: Served) -> None:
    url = served.url
    boss = lepton("add", url, "--name", "boss", "--grant", "admin:birds", token=served.token)["secret"]
    other = lepton("add", url, "--name", "other", "--grant", "read", token=served.token)["token"]
    mine = lepton("add", url, "--name", "mine", "--grant", "write:birds", "--expires", "never", token=boss)["token"]
    assert mine["author"] == "boss" and mine["expires"] is None
    assert {one["name"] for one in lepton("ls", url, token=boss)["tokens"]} == {"boss", "mine"}
    for grants in (["read"], ["read:fish"], ["admin"], ["peer"], ["read:birds", "write:fish"]):
        with pytest.raises(NotPermitted):
            lepton("add", url, "--name", "more", *(x for grant in grants for x in ("--grant", grant)), token=boss)
    for wanted in ("other", other["id"]):
        with pytest.raises(NotFound):
            lepton("revoke", url, wanted, token=boss)
    lepton("revoke", url, mine["id"][:12], token=boss)
    names = {one["name"] for one in lepton("ls", url, token=served.token)["tokens"]}
    assert {"boss", "other"} <= names and "mine" not in names


@pytest.mark.parametrize(
    "wrong",
    [
        ["--name", "x", "--grant", "red"],
        ["--name", "x", "--grant", "read:../x"],
        ["--name", "x", "--grant", "read", "--expires", "5"],
        ["--name", "x", "--grant", "read", "--expires", "0d"],
        ["--name", "x", "--grant", "read", "--expires", "999999w"],
        ["--name", "", "--grant", "read"],
        ["--name", "x" * 100, "--grant", "read"],
    ],
)
def test_what_makes_no_token_is_told(served: Served, wrong: list[str]) -> None:
    before = lepton("ls", place_of(served))
    for url in (place_of(served), served.url):
        with pytest.raises(LeptonError):
            lepton("add", url, *wrong, token=served.token)
    assert lepton("ls", place_of(served)) == before


@pytest.mark.parametrize("through", ["store", "daemon"])
def test_a_grant_for_a_dataset_that_is_not_there_is_made_and_told(
    served: Served, through: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = place_of(served) if through == "store" else served.url
    monkeypatch.setenv("LEPTON_TOKEN", served.token)
    grants = [word for grant in ("read:brids", "write:brids", "read:birds") for word in ("--grant", grant)]
    assert run(command, ["add", url, "--name", f"typo-{through}", *grants]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert said == ["lepton: warning: there is no dataset 'brids' yet"]


def test_the_secret_alone_is_on_stdout(served: Served, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(command, ["add", place_of(served), "--name", "shell", "--grant", "read"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("lepton_") and len(out.splitlines()) == 1 and out.strip() not in err and "made" in err


def test_the_audit_log_names_the_token_and_not_its_text(served: Served) -> None:
    assert served.daemon is not None and served.daemon.access.audit_log is not None
    made = lepton("add", served.url, "--name", "logged", "--grant", "read", token=served.token)
    log, text, deadline = Path(served.daemon.access.audit_log.path), "", time.monotonic() + 60
    while '"what":"logged"' not in text:  # gRPC tells the end of a call some time after its client has the answer
        assert time.monotonic() < deadline, text
        time.sleep(0.01)
        text = log.read_text()
    line = next(json.loads(one) for one in text.splitlines() if '"what":"logged"' in one)
    assert (line["operation"], line["outcome"], line["principal"]) == ("token_add", "ok", "local")
    assert made["secret"].split("_", 2)[2] not in text
