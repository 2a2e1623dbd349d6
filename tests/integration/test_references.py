"""Import by reference: the same version as a copy, nothing copied, every read checked, and nobody led astray."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.cache import HotCache
from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, delete_ref, edit, write_dataset
from leptonstore.dataset.erase import erase
from leptonstore.dataset.exchange import push
from leptonstore.dataset.exporters import export_dataset
from leptonstore.dataset.importers import open_source
from leptonstore.dataset.source import Referred
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, NotPermitted, ReferenceBroken, SourceError
from leptonstore.format import pack as lpk
from leptonstore.format.framed import NAMED_FEATURES
from leptonstore.format.reference import Reference, encode_reference, parse_reference
from leptonstore.store import Store, check_store
from leptonstore.store.gc import Collector, collect
from leptonstore.store.keys import Passphrase
from leptonstore.store.log import Proposal
from leptonstore.store.materialize import materialize
from leptonstore.store.moves import apply_moves, plan_for
from leptonstore.store.placement import HOME, Placement, TierSetting
from leptonstore.store.references import SETTING, Spot
from leptonstore.store.references_check import count_references
from leptonstore.store.repair import repair_store
from leptonstore.store.tier_mark import claim_tier
from leptonstore.tiers.external import Stamp, root_of

CHUNKS = 5  # values of a source that are references


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def images(root: Path) -> Path:
    """Values above and below the inline size, one above `cut_above`, and one twice."""
    for name, data in {
        "cat/1.jpg": noise(1, 50_000),
        "cat/2.jpg": noise(2, 100),
        "dog/1.jpg": noise(3, 5 << 20),
        "dog/2.jpg": noise(1, 50_000),
        "dog/3.jpg": noise(4, 20_000),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tars(root: Path) -> Path:
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"{shard:03}.tar", "w") as tar:
            for sample in range(4):
                files = {"jpg": noise(shard * 10 + sample, 30_000 + sample), "txt": b"word " * 10, "cls": b"3"}
                for ending, data in files.items():
                    info = tarfile.TarInfo(f"{shard}-{sample}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root


def files(root: Path) -> Path:
    images(root)
    (root / "large.bin").write_bytes(noise(9, 9 << 20))
    (root / "small.txt").write_bytes(b"small")
    (root / "link").symlink_to("small.txt")
    return root


def mds(root: Path) -> Path:
    """By our own exporter, of which the library itself reads the shards (test_mds_peer.py)."""
    with Store.create(root.parent / "before") as before:
        export_dataset(put(before, tars(root.parent / "tars"), "webdataset"), root, "mds")
    return root


SOURCES: dict[str, Callable[[Path], Path]] = {"image-folder": images, "webdataset": tars, "mds": mds, "files": files}


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "other") as made:
        yield made


def put(store: Store, path: Path | str, format: str = "image-folder", **options: Any) -> Dataset:
    return write_dataset(store, "d", open_source(path, format, **options))


def refer(store: Store, path: Path | str, format: str = "image-folder") -> Dataset:
    return put(store, path, format, reference=True)


def kinds(store: Store) -> list[int]:
    return [row.kind for pack in store.state.packs for row in store._footer_rows(pack)]


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    return dataset.to_arrow().to_pylist()


@pytest.mark.parametrize("format", SOURCES)
def test_a_reference_is_the_same_version_and_copies_nothing(
    format: str, tmp_path: Path, store: Store, other: Store
) -> None:
    source = SOURCES[format](tmp_path / "source")
    copied, referred = put(store, source, format), refer(other, source, format)
    assert referred.commit == copied.commit
    assert rows(referred) == rows(copied)
    assert [referred[at] for at in range(len(referred))] == [copied[at] for at in range(len(copied))]
    assert other.new_bytes < 20_000 < 100_000 < store.new_bytes
    assert lpk.KIND_REFERENCE in kinds(other) and lpk.KIND_REFERENCE not in kinds(store)
    assert check_store(other, read_data=True).clean
    again = other.new_bytes
    assert refer(other, source, format).commit == copied.commit
    assert other.new_bytes == again


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.from_regex(r"[ab]/[a-d]{1,3}\.png", fullmatch=True),
        st.tuples(st.integers(0, 3), st.sampled_from([1, 100, 16_384, 16_385, 40_000, 70_000])),
        min_size=1,
        max_size=12,
    )
)
def test_any_folder_reads_as_its_copy(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("any")
    for name, (seed, size) in contents.items():
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "source" / name).write_bytes(noise(seed, size))
    with Store.create(root / "one") as one, Store.create(root / "two") as two:
        copied, referred = put(one, root / "source"), refer(two, root / "source")
        assert copied.commit == referred.commit
        assert rows(copied) == rows(referred)
        assert check_store(two, read_data=True).clean
        materialize(two, [referred.commit])
        collect(two)
        assert not count_references(two)
        for name in contents:
            (root / "source" / name).unlink()
        assert rows(Dataset.open(two, "d")) == rows(copied)


def test_an_object_that_changed_or_is_gone_is_named_with_its_row(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    dataset = refer(store, source)
    changed = bytearray((source / "dog/3.jpg").read_bytes())
    changed[7] ^= 1
    status = os.stat(source / "dog/3.jpg")
    (source / "dog/3.jpg").write_bytes(changed)
    os.utime(source / "dog/3.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ReferenceBroken, match=r"d@main row 4 column 'image'.*dog/3.jpg.*not those that were imported"):
        dataset.to_arrow()
    assert dataset[0]["image"] == noise(1, 50_000)
    (source / "dog/1.jpg").write_bytes(b"short")
    with pytest.raises(ReferenceBroken, match=r"row 2 column 'image'.*dog/1.jpg.*it has 5 bytes by now"):
        dataset[2]
    (source / "dog/3.jpg").unlink()
    with pytest.raises(ReferenceBroken, match=r"row 4 column 'image'.*dog/3.jpg.*it is gone"):
        dataset[4]
    # The same bytes stand in another file: that one is as good.
    (source / "cat/1.jpg").unlink()
    assert dataset[1]["image"] == noise(2, 100)


def test_check_says_which_references_cannot_be_read(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    refer(store, source)
    clean = check_store(store)
    assert clean.clean and clean.references > 0
    (source / "dog/3.jpg").unlink()
    report = check_store(store)
    assert [problem.kind for problem in report.problems] == ["reference"]
    assert "row 4 column 'image'" in report.problems[0].line()
    assert report.damaged
    # What only reading tells: the same size and time.
    (source / "dog/3.jpg").write_bytes(noise(4, 20_000))
    status = os.stat(source / "cat/1.jpg")
    (source / "cat/1.jpg").write_bytes(noise(5, 50_000))
    os.utime(source / "cat/1.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    refer(store, source)  # a new version; dog/3.jpg is referred to as it is now
    assert not any("cat/1" in problem.what for problem in check_store(store).problems)


def test_reading_finds_what_time_and_size_do_not_tell(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    refer(store, source)
    status = os.stat(source / "dog/3.jpg")
    (source / "dog/3.jpg").write_bytes(noise(77, 20_000))
    os.utime(source / "dog/3.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert check_store(store).clean
    (problem,) = check_store(store, read_data=True).problems
    assert problem.kind == "reference" and "dog/3.jpg" in problem.what and "row 4" in problem.line()


def test_a_copy_is_a_copy_also_after_a_reference(tmp_path: Path, store: Store) -> None:
    """Who imports without --reference is promised that the store keeps the bytes."""
    source = images(tmp_path / "source")
    referred = refer(store, source)
    before = store.new_bytes
    assert put(store, source).commit == referred.commit
    assert store.new_bytes > before + 5_000_000
    for path in source.rglob("*.jpg"):
        path.unlink()
    assert len(rows(Dataset.open(store, "d"))) == CHUNKS
    assert check_store(store, read_data=True).clean
    collect(store)
    assert not count_references(store)
    assert check_store(store, read_data=True).clean


def test_a_source_that_moved_is_imported_again_from_its_new_place(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    dataset = refer(store, source)
    expected = rows(dataset)
    source.rename(tmp_path / "moved")
    with pytest.raises(ReferenceBroken):
        rows(dataset)
    refer(store, tmp_path / "moved")
    assert rows(dataset) == expected
    assert check_store(store, read_data=True).clean


@pytest.mark.parametrize("format", SOURCES)
def test_materialize_copies_them_in_and_changes_no_version(format: str, tmp_path: Path, store: Store) -> None:
    source = SOURCES[format](tmp_path / "source")
    dataset = refer(store, source, format)
    expected, report = rows(dataset), materialize(store, [dataset.commit])
    assert report.chunks and report.new_bytes >= report.plain_bytes
    assert materialize(store, [dataset.commit]).chunks == 0
    source.rename(tmp_path / "gone")
    assert rows(Dataset.open(store, "d")) == expected
    assert Dataset.open(store, "d").commit == dataset.commit
    collect(store)
    assert not count_references(store)
    assert rows(Dataset.open(store, "d")) == expected
    assert check_store(store, read_data=True).clean


def test_a_tree_of_files_goes_out_as_it_came_in(tmp_path: Path, store: Store) -> None:
    source = files(tmp_path / "source")
    export_dataset(refer(store, source, "files"), tmp_path / "out", "files")
    for path in source.rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_a_keyed_table_and_edits_keep_references(tmp_path: Path, store: Store) -> None:
    source = tars(tmp_path / "source")
    dataset = put(store, source, "webdataset", key="__key__", reference=True)
    expected, before = rows(dataset), store.new_bytes
    left = edit.delete(dataset, "__key__ = '1-2'")
    assert rows(left) == [row for row in expected if row["__key__"] != "1-2"]
    assert store.new_bytes - before < 10_000


def test_materialize_that_met_a_broken_object_goes_on_later(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    dataset = refer(store, source)
    (source / "dog/3.jpg").rename(tmp_path / "away.jpg")
    with pytest.raises(ReferenceBroken, match=r"dog/3.jpg"):
        materialize(store, [dataset.commit])
    (tmp_path / "away.jpg").rename(source / "dog/3.jpg")
    materialize(store, [dataset.commit])
    assert check_store(store).references == 0


def test_gc_keeps_references_and_never_touches_their_source(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    dataset = refer(store, source)
    expected = rows(dataset)
    collect(store)
    assert rows(dataset) == expected
    delete_ref(store, "dataset", "d", "main")
    collect(store)
    assert not store.state.packs
    assert sum(path.stat().st_size for path in source.rglob("*.jpg")) == sum(len(row["image"]) for row in expected)


def test_repack_copies_references_as_they_are(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    more = limits.GC_SMALL_PACKS_MIN + 2
    for number in range(more):
        (source / f"cat/n{number}.jpg").write_bytes(noise(100 + number, 20_000))
        dataset = refer(store, source)
    expected = rows(dataset)
    assert collect(store).repacked >= limits.GC_SMALL_PACKS_MIN
    ((count, size),) = count_references(store).values()
    assert count >= more and size > 5_000_000 > sum(record.bytes for record in store.state.packs.values())
    assert rows(dataset) == expected
    assert check_store(store, read_data=True).clean


def test_erase_forgets_where_a_value_stands_and_leaves_its_source_to_its_owner(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    expected = rows(refer(store, source))
    gone = digest_of(expected[4]["image"])
    assert erase(store, "d", "path = 'dog/3.jpg'").complete
    assert rows(Dataset.open(store, "d")) == expected[:4]
    left = [row for pack in store.state.packs for row in store._footer_rows(pack)]
    assert gone not in {row.digest for row in left} and lpk.KIND_REFERENCE in {row.kind for row in left}
    assert not any(b"dog/3.jpg" in path.read_bytes() for path in (tmp_path / "store" / "packs").rglob("*.pack"))
    assert (source / "dog/3.jpg").exists()
    assert check_store(store, read_data=True).clean


def test_repair_salvages_references_of_a_damaged_pack(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    dataset = refer(store, source)
    expected = rows(dataset)
    pack = next(pack for pack in store.state.packs if any(row.kind == 5 for row in store._footer_rows(pack)))
    path = tmp_path / "store" / "packs" / pack[:2] / f"{pack}.pack"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # its footer
    path.chmod(0o644)
    path.write_bytes(data)
    store.reindex()
    assert not check_store(store).clean
    repair_store(store)
    assert check_store(store, read_data=True).clean
    assert rows(Dataset.open(store, "d")) == expected


def test_a_push_brings_the_bytes(tmp_path: Path, store: Store, other: Store) -> None:
    source = images(tmp_path / "source")
    dataset = refer(store, source)
    expected = rows(dataset)
    push(store, other, ["dataset/d/main"])
    source.rename(tmp_path / "gone")
    assert rows(Dataset.open(other, "d")) == expected
    assert Dataset.open(other, "d").commit == dataset.commit
    assert lpk.KIND_REFERENCE not in kinds(other) and not other.references.used
    assert check_store(other, read_data=True).clean


def test_a_hot_cache_keeps_what_was_read(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    dataset = refer(store, source)
    expected = rows(dataset)
    with HotCache(tmp_path / "cache", 64 << 20) as cache:
        cached = Dataset.open(store, "d").cached(cache)
        assert rows(cached) == expected
        (source / "dog/3.jpg").unlink()
        assert cached[4]["image"] == noise(4, 20_000)


def test_references_that_are_condemned_before_a_ref_leads_to_them_are_written_again(
    tmp_path: Path, store: Store
) -> None:
    source = open_source(images(tmp_path / "source"), "image-folder", reference=True)
    assert source.referred is not None
    batches = source.referred.batches
    with Store.open(store.url) as other:

        def condemned() -> Any:
            yield from batches()
            store.flush()  # listed, and no ref leads there yet
            for _ in Collector(other, repack=False, heed_claims=False).steps():
                if other.state.condemned:
                    return

        late = replace(source, referred=Referred(source.referred.root, condemned))
        dataset = write_dataset(store, "d", late)
        assert other.state.condemned
    assert lpk.KIND_REFERENCE in kinds(store) and store.new_bytes < 100_000
    collect(store)
    assert len(rows(dataset)) == CHUNKS
    assert check_store(store, read_data=True).clean


def test_references_move_from_tier_to_tier_with_their_packs(tmp_path: Path, store: Store) -> None:
    dataset = refer(store, images(tmp_path / "source"))
    expected = rows(dataset)
    claim_tier(str(tmp_path / "cold"), store)
    tiers = (TierSetting(HOME, watermark=1), TierSetting("cold", str(tmp_path / "cold")))
    store.configure(Placement(tiers).setting(), ("tiers",))
    assert apply_moves(store, plan_for(store).moves).moved
    with Store.open(store.url) as again:
        assert rows(Dataset.open(again, "d")) == expected
        assert check_store(again, read_data=True).clean


def test_a_child_of_a_fork_and_another_process_read_them(tmp_path: Path, store: Store) -> None:
    dataset = refer(store, images(tmp_path / "source"))
    expected = [row["image"] for row in rows(dataset)]
    for how in ("fork", "spawn"):
        with multiprocessing.get_context(how).Pool(1) as pool:
            assert pool.apply(images_of, (dataset,)) == expected


def images_of(dataset: Dataset) -> list[bytes]:
    return [row["image"] for row in dataset.to_arrow(["image"]).to_pylist()]


# -- who is led where ----------------------------------------------------------------------------------------------


def test_another_host_has_to_allow_the_root(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source = images(tmp_path / "source")
    expected = rows(refer(store, source))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-host"))
    with Store.open(tmp_path / "store") as there:
        with pytest.raises(NotPermitted, match=rf"lepton references allow {root_of(source)}"):
            rows(Dataset.open(there, "d"))
        report = check_store(there)
        assert not report.clean and not report.damaged
        there.references.allow(source)
        assert rows(Dataset.open(there, "d")) == expected
    with Store.open(tmp_path / "store") as there:
        assert rows(Dataset.open(there, "d")) == expected
        there.references.disallow(source)
        with pytest.raises(NotPermitted):
            rows(Dataset.open(there, "d"))


def _hostile(store: Store, root: str, path: str, data: bytes) -> bytes:
    """A store whose writer put a reference there, whatever our own code would say."""
    digest = digest_of(data)
    store.append(lambda state: Proposal("settings", settings={SETTING: {"1": root}}, requires=(SETTING,)))
    reference = lpk_reference(path, len(data))
    store._writer.add(digest, lpk.KIND_REFERENCE, reference, lpk.CONTENT_DATA, here=True)
    store.flush()
    return digest


def lpk_reference(path: str, length: int) -> bytes:
    return encode_reference(Reference(1, path, 0, length))


def test_a_hostile_store_reads_nothing_by_itself(tmp_path: Path, store: Store) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/key").write_bytes(b"known to the attacker")
    digest = _hostile(store, f"file://{tmp_path}/secrets", "key", b"known to the attacker")
    with pytest.raises(NotPermitted, match="nobody allowed on this host"):
        store.get(digest)
    with pytest.raises(NotPermitted):
        list(store.get_many([digest]))
    with pytest.raises(NotPermitted):
        store.find_many([digest]).begin()


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret", "a//b", "", ".", "a\\b", "a\nb"])
def test_a_path_that_leads_out_is_no_reference(path: str, tmp_path: Path, store: Store) -> None:
    with pytest.raises(FormatDamaged):
        parse_reference(lpk_reference(path, 10))
    with pytest.raises(BadInput):
        store.put_reference(b"x" * 20_000, 1, Spot(path, 0, Stamp(20_000, "")))


@pytest.mark.parametrize(
    "root",
    [
        "http://169.254.169.254/latest",
        "s3://key:secret@bucket/x",
        "s3://bucket/x?signature=1",
        "file:///a/../etc",
        "file://host/share",
        "memory://x",
        "/etc",
        7,
    ],
)
def test_a_root_that_we_would_not_write_is_not_read(root: Any, store: Store) -> None:
    digest = _hostile(store, root, "x", b"x" * 100)
    with pytest.raises(FormatTooNew):
        store.get(digest)


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    dataset = refer(store, source)
    (tmp_path / "outside").write_bytes((source / "dog/3.jpg").read_bytes())
    (source / "dog/3.jpg").unlink()
    (source / "dog/3.jpg").symlink_to(tmp_path / "outside")
    with pytest.raises(ReferenceBroken):
        dataset[4]
    (source / "dog/3.jpg").unlink()
    os.mkfifo(source / "dog/3.jpg")  # must not wait for a writer
    with pytest.raises(ReferenceBroken):
        dataset[4]


def test_what_refuses_references(tmp_path: Path, store: Store) -> None:
    source = images(tmp_path / "source")
    with (
        Store.create(tmp_path / "sealed", unlock=Passphrase(b"secret words")) as sealed,
        pytest.raises(BadInput, match="encrypted"),
    ):
        refer(sealed, source)
    with Store.create(f"memory://{tmp_path.name}") as away, pytest.raises(BadInput, match="folder of one machine"):
        refer(away, source)
    with pytest.raises(BadInput, match="reference"):
        put(store, "digits", "digits", reference=True)
    assert not store.state.refs


def test_a_compressed_archive_is_refused(tmp_path: Path, store: Store) -> None:
    source = tars(tmp_path / "source")
    (source / "002.tar.gz").write_bytes(gzip.compress((source / "001.tar").read_bytes()))
    with pytest.raises(SourceError, match=r"002.tar.gz is compressed"):
        refer(store, source, "webdataset")
    assert not store.state.refs


def test_older_readers_are_told(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    refer(store, images(tmp_path / "source"))
    monkeypatch.delitem(NAMED_FEATURES, "references")
    with pytest.raises(FormatTooNew, match="references"):
        Store.open(tmp_path / "store", cache_dir=tmp_path / "fresh")


def test_the_commands(tmp_path: Path) -> None:
    source = images(tmp_path / "source")
    place = ["--store", str(tmp_path / "made")]

    def run(*words: str) -> str:
        result = CliRunner().invoke(lepton, [*words, *place], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    CliRunner().invoke(lepton, ["init", str(tmp_path / "made")], catch_exceptions=False)
    assert run("references", "ls").startswith("this store refers to nothing")
    run("import", str(source), "photos", "--reference")
    assert f"{root_of(source)}" in run("references", "ls") and "allowed here" in run("references", "ls")
    run("references", "disallow", str(source))
    assert "not allowed on this host" in run("references", "ls")
    run("references", "allow", root_of(source))
    assert "copied" in run("materialize", "photos")
    run("gc")
    assert "0 values" in run("references", "ls")
    source.rename(tmp_path / "gone")
    assert "clean" in run("check", "--read-data")
