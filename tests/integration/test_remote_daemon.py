"""A client and a daemon that is a process of its own: loaders of all kinds, forks, the command line, push, pull and clone."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from remote_data import ROWS, source

from leptonstore import limits
from leptonstore.cli.group import lepton
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.tokens import TokenRing
from leptonstore.dataset import Dataset, write_dataset
from leptonstore.dataset.exchange import clone, pull, push, refs_of
from leptonstore.errors import BadInput, NotAuthenticated, TierUnavailable
from leptonstore.store import Store, check_store
from leptonstore.store.remote_store import OnlyThere, RemoteStore
from leptonstore.testing import daemon
from loaders import DataLoader


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Served]:
    """A daemon over a store with dataset "t", which was written through it."""
    place = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(place / "run"))
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.delenv("LEPTON_TOKEN", raising=False)
        Store.create(place / "store").close()
        with daemon.running(place / "store") as served:
            with Store.open(served.url) as store:
                write_dataset(store, "t", source())
            yield served


@pytest.fixture
def remote(there: daemon.Served) -> Iterator[RemoteStore]:
    """With no token given: the daemon's own, of this user on this host."""
    with Store.open(there.url) as store:
        assert isinstance(store, RemoteStore)
        yield store


@pytest.fixture
def local(there: daemon.Served) -> Iterator[Store]:
    with Store.open(str(there.told["store"])) as store:
        yield store


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(lepton, list(map(str, arguments)))
    failure = result.exception
    assert result.exit_code == code, (result.output, failure)
    return result


# -- the same as the store's own -------------------------------------------------------------------------------------------


def test_versions_have_the_names_that_they_have_in_a_store(remote: RemoteStore, local: Store, tmp_path: Path) -> None:
    with Store.create(tmp_path / "own") as own:
        assert write_dataset(own, "t", source()).commit == Dataset.open(remote, "t").commit
    assert {name: ref.commit for name, ref in remote.state.refs.items()} == {
        name: ref.commit for name, ref in local.state.refs.items()
    }
    assert Dataset.open(remote, "t").to_arrow().equals(Dataset.open(local, "t").to_arrow())
    assert Dataset.open(remote, "t").stats() == Dataset.open(local, "t").stats()
    assert check_store(local, read_data=True).clean


@pytest.mark.parametrize(
    "options",
    [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 2, "worker_mode": "process"}],
    ids=["here", "threads", "processes"],
)
def test_loaders_hand_out_the_same_batches_and_receipts(
    remote: RemoteStore, local: Store, options: dict[str, Any]
) -> None:
    told = []
    for store in (local, remote):
        loader = DataLoader(Dataset.open(store, "t"), batch_size=64, shuffle=True, receipts=True, **options)
        batches = [(batch["id"].tolist(), [bytes(one) for one in batch["image"]]) for batch in loader]
        told.append((batches, loader.receipt().to_dict() if hasattr(loader.receipt(), "to_dict") else loader.receipt()))
    assert told[0][0] == told[1][0]
    assert str(told[0][1]) == str(told[1][1])


def test_every_attribute_of_a_store_is_its_own_or_says_where_it_is() -> None:
    """Nothing of Store's own works on packs behind a RemoteStore's back."""
    safe = {
        "create", "open", "read_config", "again", "chunker", "encrypted", "same_place", "state", "moment", "unflushed",
    }  # fmt: skip
    inherited = {name for name in vars(Store) if not name.startswith("_")} - vars(RemoteStore).keys()
    assert inherited <= safe, inherited - safe


def test_what_works_on_files_says_where_to_go(remote: RemoteStore) -> None:
    for name, value in vars(RemoteStore).items():
        if isinstance(value, OnlyThere):
            with pytest.raises(BadInput, match="behind a daemon"):
                getattr(remote, name)
    for url in (remote.url, remote.url.replace("lepton://", "lepton+tls://")):
        with pytest.raises(BadInput, match="behind a daemon"):
            Store.create(url)


def test_the_hot_cache_of_the_host_is_read_directly(there: daemon.Served, tmp_path: Path) -> None:
    with daemon.running(there.told["store"], cache=str(tmp_path / "hot"), cache_bytes="64MiB") as near:
        for attempt in range(2):
            with Store.open(near.url) as store:
                assert isinstance(store, RemoteStore)
                want = Dataset.open(there.told["store"], "t").to_arrow()
                assert Dataset.open(store, "t").to_arrow().equals(want)
                read = sum(store.bytes_read.values())
            if not attempt:
                first = read
        assert first > 1 << 20 and read < first / 10, "the daemon put it there when it was asked for"


# -- processes -------------------------------------------------------------------------------------------------------------


def in_child(work: Any) -> int:
    """Its exit code: 0 when `work()` was true."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_reads_and_writes_and_its_parent_goes_on(remote: RemoteStore) -> None:
    ds = Dataset.open(remote, "t")
    want = ds.take([3, 5, 1_000])
    remote.put(b"of the parent" * 1_000)
    assert in_child(lambda: ds.take([3, 5, 1_000]).equals(want)) == 0
    assert in_child(lambda: write_dataset(remote, "of-a-child", source(300, 3)).commit) == 0
    assert in_child(lambda: in_child(lambda: len(Dataset.open(remote, "t")) == ROWS) == 0) == 0
    remote.refresh()
    assert len(Dataset.open(remote, "of-a-child")) == 300 and ds.take([3, 5, 1_000]).equals(want)
    remote.flush()


def test_a_dataset_pickles_and_opens_in_another_process(remote: RemoteStore) -> None:
    ds = Dataset.open(remote, "t").select([5, 3])
    data = pickle.dumps(ds)
    assert b"token" not in data.lower() and len(data) < 2_000
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).to_arrow(['id'])['id'].to_pylist())"
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[5, 3]"


# -- fsspec ----------------------------------------------------------------------------------------------------------------


def test_fsspec_urls_go_on_a_daemons_url(there: daemon.Served, remote: RemoteStore) -> None:
    import fsspec
    import pandas as pd
    import pyarrow.dataset as pds

    want = Dataset.open(remote, "t").to_arrow(["id"])["id"]
    for url in (f"{there.url}/t@main/data", f"lepton://{there.url}/t@main/data"):
        filesystem, path = fsspec.core.url_to_fs(url)
        assert pds.dataset(path, filesystem=filesystem, format="parquet").to_table(["id"])["id"].equals(want)
        assert f"lepton://{path}" == f"{there.url}/t@main/data" and filesystem.isdir(url)
    assert len(pd.read_parquet(f"{there.url}/t@main/data", columns=["id"])) == ROWS
    assert len(pd.read_parquet("lepton://t@main/data", columns=["id"], storage_options={"store": there.url})) == ROWS


# -- the command line ------------------------------------------------------------------------------------------------------


def test_commands_take_the_url_wherever_they_take_a_path(there: daemon.Served, tmp_path: Path) -> None:
    at = ("--store", there.url)
    (tmp_path / "a.csv").write_text("id,name\n1,a\n2,b\n")
    (tmp_path / "b.csv").write_text("id,name\n3,c\n")
    run("import", tmp_path / "a.csv", "names", "--key", "id", *at)
    run("append", "names", tmp_path / "b.csv", *at)
    assert "names" in run("ls", *at).output and "c" in run("head", "names", *at).output
    assert run("log", "names", *at).output.count("\n") == 2 and "names" in run("show", "names", *at).output
    run("branch", "names@side", *at)
    run("tag", "names@v1", *at)
    run("delete", "names@side", "--where", "id = 1", *at)
    assert "1" in run("diff", "names", "names@side", *at).output
    run("merge", "names@side", "--into", "names", *at)
    assert "2" in run("sql", "select count(*) from names", *at).output
    run("stats", "names", *at)
    run("export", "names", tmp_path / "out.csv", *at)
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == '"id","name"'
    run("remote", "add", "elsewhere", str(tmp_path / "elsewhere"), *at)
    assert "elsewhere" in run("remote", "ls", *at).output
    for command in (["repair"], ["tier", "ls"], ["upgrade"], ["forget", "names", "--keep", "1"], ["key", "ls"]):
        result = CliRunner().invoke(lepton, [*command, *at])
        assert result.exit_code != 0 and "behind a daemon" in f"{result.output}{result.exception}", command


# -- between stores --------------------------------------------------------------------------------------------------------


def test_versions_go_to_and_from_a_served_store(remote: RemoteStore, local: Store, tmp_path: Path) -> None:
    with Store.create(tmp_path / "mine") as mine:
        clone(remote, mine, ["t"])
        assert mine.state.refs["dataset/t/main"].commit == remote.state.refs["dataset/t/main"].commit
        assert check_store(mine, read_data=True).clean
        write_dataset(mine, "new", source(800, 7))
        sent = push(mine, remote, refs_of(mine, ["new"])).report
        assert sent.chunks_sent > 160 and sent.bytes_sent > 0
        assert push(mine, remote, refs_of(mine, ["new"])).report.chunks_sent == 0
        remote.refresh()
        assert Dataset.open(remote, "new").to_arrow().equals(Dataset.open(mine, "new").to_arrow())
        Dataset.open(remote, "new").append(next(iter(source(50, 8).batches())))
        got = pull(mine, remote, ["dataset/new/main"]).report
        assert got.commits == 1 and got.chunks_sent < 60
        assert len(Dataset.open(mine, "new")) == 850
    local.refresh()
    assert check_store(local, read_data=True).clean


def test_a_push_whose_client_is_killed_goes_on_where_it_was(
    there: daemon.Served, local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.create(tmp_path / "mine") as mine:
        write_dataset(mine, "killed", source(3_000, 9))
    code = (
        "import os, signal; from leptonstore import limits; limits.WIRE_PUT_BYTES = limits.WIRE_FLUSH_BYTES = 1 << 20\n"
        "from leptonstore.store.transfer import Transfer; count, calls = Transfer._count, []\n"
        "def counted(*given):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 400: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    count(*given)\n"
        "Transfer._count = counted\n"
        "from leptonstore.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "push", "killed", "--store", str(tmp_path / "mine"), "--to", there.url]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    local.refresh()
    assert "dataset/killed/main" not in local.state.refs
    with Store.open(tmp_path / "mine") as mine, Store.open(there.url) as remote:
        report = push(mine, remote, refs_of(mine, ["killed"])).report
        assert report.chunks_present > 150, "what arrived is not sent again"
        remote.refresh()
        assert Dataset.open(remote, "killed").commit == Dataset.open(mine, "killed").commit
    local.refresh()
    assert check_store(local, read_data=True).clean


# -- a credential that ends ------------------------------------------------------------------------------------------------


def test_an_epoch_whose_token_ends_says_so_and_goes_on_with_another_where_it_was(
    there: daemon.Served, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Revoked and expired tokens pass the same gate (test_access_matrix.py); revoking needs no waiting."""
    ring = TokenRing.of(local)
    ending, text = ring.add("ending", [Grant.parse("read:t")])
    other = ring.add("other", [Grant.parse("read:t")])[1]
    want = [batch["id"].tolist() for batch in DataLoader(Dataset.open(local, "t"), batch_size=64, shuffle=True, seed=3)]

    def loader(store: Store) -> DataLoader:
        assert isinstance(store, RemoteStore)
        store.without_cache()
        return DataLoader(Dataset.open(store, "t"), batch_size=64, shuffle=True, seed=3)

    seen: list[list[int]] = []
    monkeypatch.setenv("LEPTON_TOKEN", text)
    with Store.open(there.url) as store:
        first = loader(store)
        with pytest.raises(NotAuthenticated, match="token"):
            for batch in first:
                seen.append(batch["id"].tolist())
                if len(seen) == 5:
                    ring.revoke(ending.id)
        state = first.state_dict()
        with pytest.raises(NotAuthenticated):
            store.refresh()
    assert 5 <= len(seen) < len(want)
    monkeypatch.setenv("LEPTON_TOKEN", other)
    with Store.open(there.url) as store:
        second = loader(store)
        second.load_state_dict(state)
        seen += [batch["id"].tolist() for batch in second]
    assert seen == want


# -- TLS -------------------------------------------------------------------------------------------------------------------


def test_over_tls_with_an_authority_that_is_named_and_with_no_other(
    there: daemon.Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certificates import HERE, make

    made = make(tmp_path, "localhost", alternative=HERE)
    cert, key = made.chain, made.key_file
    with daemon.running(there.told["store"], tls_cert=str(cert), tls_key=str(key)) as secret:
        url = secret.url.replace("127.0.0.1", "localhost")
        assert url.startswith("lepton+tls://")
        monkeypatch.setenv("LEPTON_CA", str(cert))
        with Store.open(url) as store:
            ds = Dataset.open(store, "t")
            want = ds.take([1, 2, 3])
            assert in_child(lambda: ds.take([1, 2, 3]).equals(want)) == 0, "a child speaks TLS over HTTP"
        monkeypatch.delenv("LEPTON_CA")
        monkeypatch.setattr(limits, "WIRE_OPEN_S", 1.0)
        with pytest.raises(TierUnavailable, match="LEPTON_CA"):
            Store.open(url)
        with pytest.raises(TierUnavailable):
            Store.open(url.replace("lepton+tls://", "lepton://"))
