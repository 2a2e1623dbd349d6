"""Nothing that is stored or received is unpickled: a bomb behind any door of checkpoints and models leaves no mark."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import quick_config, write_patterns

from leptonstore.dataset import FileTable, write_files
from leptonstore.errors import LeptonError
from leptonstore.store import Store
from loaders.receipt import Receipt
from trainers import checkpoint as checkpoints
from trainers.deploy import deploy, load_bundle
from trainers.importing import import_checkpoint
from trainers.loop import Trainer
from trainers.pickle_data import parse
from trainers.reproduce import read_record, reproduce, require_confirmed
from trainers.weights import checkpoint_digest


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture(params=[0, 2, 4])
def bomb(request: pytest.FixtureRequest, marker: Path) -> bytes:
    """As text of protocol 0 and as opcodes of later ones: different ways to name what is called."""
    return pickle.dumps(Bomb(marker), protocol=request.param)


def test_the_bomb_is_one(bomb: bytes, marker: Path) -> None:
    """Else no other test here could fail."""
    pickle.loads(bomb)  # noqa: S301
    assert marker.exists()


def saved(tree: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(tree, out, **options)
    return out.getvalue()


# -- files that are imported -------------------------------------------------------------------------------------------


def as_pickle(marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


def as_weight(marker: Path) -> bytes:
    return saved({"w": torch.zeros(2), "b": Bomb(marker)})


def as_old_file(marker: Path) -> bytes:
    return saved({"w": torch.zeros(2), "b": Bomb(marker)}, _use_new_zipfile_serialization=False)


def beside_the_weights(marker: Path) -> bytes:
    return saved({"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": Bomb(marker)})


def as_a_whole_module(marker: Path) -> bytes:
    module = torch.nn.Linear(2, 2)
    module.bomb = Bomb(marker)
    return saved(module)


def with_another_pickle_in_the_archive(marker: Path) -> bytes:
    """An archive whose data.pkl is a bomb alone."""
    plain, out = zipfile.ZipFile(io.BytesIO(saved({"w": torch.zeros(2)}))), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
        for name in plain.namelist():
            made.writestr(name, pickle.dumps(Bomb(marker), 2) if name.endswith("data.pkl") else plain.read(name))
    return out.getvalue()


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.safetensors", "a.bin"])
@pytest.mark.parametrize(
    "make",
    [as_pickle, as_weight, as_old_file, beside_the_weights, as_a_whole_module, with_another_pickle_in_the_archive],
)
def test_a_file_that_is_imported(
    store: Store, tmp_path: Path, marker: Path, make: Callable[[Path], bytes], name: str
) -> None:
    (tmp_path / name).write_bytes(make(marker))
    with pytest.raises(LeptonError, match=name.replace(".", r"\.")):
        import_checkpoint(store, tmp_path / name, "theirs")
    assert not marker.exists() and not checkpoints.exists(store, "theirs")


# -- a directory of torch.distributed.checkpoint -----------------------------------------------------------------------


@pytest.fixture
def dcp(tmp_path: Path) -> Path:
    from torch.distributed import checkpoint

    checkpoint.save({"model": {"w": torch.arange(6.0)}, "step": 3}, checkpoint_id=tmp_path / "dcp")
    return tmp_path / "dcp"


def test_the_metadata_of_a_dcp_directory(store: Store, dcp: Path, marker: Path, bomb: bytes) -> None:
    (dcp / ".metadata").write_bytes(bomb)
    with pytest.raises(LeptonError, match=r"no metadata of torch.distributed.checkpoint"):
        import_checkpoint(store, dcp, "theirs")
    assert not marker.exists()


def test_a_bomb_inside_of_sound_metadata(store: Store, dcp: Path, marker: Path) -> None:
    """Refused wherever it stands in what is needed; what is not needed may be anything."""
    for place in ("planner_data", "storage_meta", "state_dict_metadata", "storage_data"):
        metadata = pickle.loads((dcp / ".metadata").read_bytes())  # noqa: S301 (ours)
        setattr(metadata, place, Bomb(marker))
        target = dcp.with_name(place)
        shutil.copytree(dcp, target)
        (target / ".metadata").write_bytes(pickle.dumps(metadata))
        if place == "storage_meta":
            assert import_checkpoint(store, target, place)[1].weights
        else:
            with pytest.raises(LeptonError, match="is damaged"):
                import_checkpoint(store, target, place)
    assert not marker.exists()


def test_a_piece_of_a_dcp_directory(store: Store, dcp: Path, marker: Path) -> None:
    """The value "step" stands in the file as torch.save wrote it: a bomb in its place, of the very length that is named."""
    metadata = pickle.loads((dcp / ".metadata").read_bytes())  # noqa: S301
    data = saved(Bomb(marker))
    for index, info in metadata.storage_data.items():
        if index.fqn == "step":
            file = dcp / info.relative_path
            info.offset, info.length = file.stat().st_size, len(data)
            file.write_bytes(file.read_bytes() + data)
    (dcp / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(LeptonError, match=r"'step' .* nothing of it was executed"):
        import_checkpoint(store, dcp, "theirs")
    assert not marker.exists()


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_pieces_stay_inside_of_the_directory(store: Store, dcp: Path, place: str) -> None:
    metadata = pickle.loads((dcp / ".metadata").read_bytes())  # noqa: S301
    for info in metadata.storage_data.values():
        info.relative_path = place
    (dcp / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(LeptonError, match="not one inside of it"):
        import_checkpoint(store, dcp, "theirs")


def test_sizes_that_a_dcp_directory_claims_take_no_memory(store: Store, dcp: Path) -> None:
    metadata = pickle.loads((dcp / ".metadata").read_bytes())  # noqa: S301
    tensor = metadata.state_dict_metadata["model.w"]
    for size in (1 << 40, 1 << 60):
        tensor.size = tensor.chunks[0].sizes = torch.Size([size])
        (dcp / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(LeptonError, match=r"claims|damaged"):
            import_checkpoint(store, dcp, "theirs")


def test_the_parser_of_pickles_reads_what_they_say_and_does_nothing(bomb: bytes, marker: Path) -> None:
    made = parse(bomb, "it")
    assert (made.name.name, made.arguments) == ("system", (f"touch {marker}",)) and not marker.exists()


def test_the_parser_of_pickles_agrees_with_pickle() -> None:
    """Bytes and sets are calls of functions before protocol 3 and 4."""
    plain = {"a": [1, 2.5, None, True, "x"], "b": (1, (2,), ()), "d": [1 << 80, -1, 300, 70_000], "e": {}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        tree = {**plain, **({"f": b"y", "c": {3, 4}, "g": frozenset({5})} if protocol >= 4 else {})}
        assert parse(pickle.dumps(tree, protocol), "it") == tree


@pytest.mark.parametrize(
    "data", [b"", b".", b"garbage", b"\x80\x04", b"\x80\x04K\x01", b"(.", b"\x80\x04]K\x01a.x"[:4], b"P1\n.", b"R."]
)
def test_the_parser_refuses_what_is_no_pickle(data: bytes) -> None:
    with pytest.raises(LeptonError, match="it is damaged"):
        parse(data, "it")


# -- what stands in a store --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(store: Store) -> Store:
    Trainer(quick_config(), store, write_patterns(store), run="run").fit(max_steps=2)
    deploy(store, "run", "net")
    return store


def rewritten(
    store: Store, kind: str, spec: str, files: dict[str, bytes], lineage: dict[str, Any] | None = None
) -> FileTable:
    """The same table with other files in it."""
    name, _, branch = spec.partition("@")
    table = FileTable.open(store, kind, spec)
    kept = {path: table.read(path) for path in table.paths()} | files
    changed = {**table.lineage, **(lineage or {})}
    return write_files(
        store, kind, name, list(kept.items()), changed, branch=branch or "main", apart=kind == "checkpoint"
    )


def test_a_checkpoint_of_the_store(trained: Store, marker: Path, bomb: bytes) -> None:
    """Whatever file of it is a pickle: the layout is no JSON, a cell is another tensor."""
    paths = checkpoints.load(trained, "run").files.paths()
    ds = write_patterns(trained)
    for path in (paths[0], next(path for path in paths if "conv.weight" in path), "manifest.json", "data.pkl"):
        rewritten(trained, "checkpoint", "run@step-000000002", {path: bomb})
        for use in (
            lambda: checkpoint_digest(checkpoints.load(trained, "run")),
            lambda: checkpoints.load(trained, "run").verify(),
            lambda: Trainer(quick_config(), trained, ds, run="run").fit(resume=True),
            lambda: deploy(trained, "run", "again"),
        ):
            try:
                use()
            except LeptonError:
                continue
            assert path in ("manifest.json", "data.pkl"), (
                "files that nobody asks for do no harm; all others are refused"
            )
        assert not marker.exists()


def test_a_checkpoint_that_dcp_loads(store: Store, marker: Path, bomb: bytes) -> None:
    """torch.distributed.checkpoint's planner unpickles what is no tensor: what the reader gives it never comes from the store."""
    from torch.distributed import checkpoint as dcp

    from trainers.checkpoint.dcp import StoreReader, StoreWriter

    writer = StoreWriter(store, "theirs", step=1)
    dcp.save({"model": {"w": torch.zeros(2)}, "note": "text"}, storage_writer=writer)
    writer.close()
    scalars = dict(checkpoints.load(store, "theirs").scalars)
    (name,) = [path for path in scalars if "note" in path]
    for value in (bomb.decode("latin-1"), {"()": [bomb.decode("latin-1")]}, {"bytes": bomb.hex()}, [bomb.hex()]):
        rewritten(store, "checkpoint", "theirs@step-000000001", {}, {"scalars": {**scalars, name: value}})
        state = {"model": {"w": torch.ones(2)}, "note": ""}
        dcp.load(state, storage_reader=StoreReader(store, "theirs"))
        assert state["note"] and torch.equal(state["model"]["w"], torch.zeros(2)), "plain values, whatever they say"
    paths = checkpoints.load(store, "theirs").files.paths()
    rewritten(store, "checkpoint", "theirs@step-000000001", {path: bomb for path in paths if path.endswith(".cell")})
    with pytest.raises((LeptonError, dcp.CheckpointException)):
        dcp.load({"model": {"w": torch.ones(2)}}, storage_reader=StoreReader(store, "theirs"))
    assert not marker.exists()


@pytest.mark.parametrize("key", ["model", "loss", "optimizer", "schedule"])
def test_a_stored_configuration_calls_nothing(trained: Store, marker: Path, key: str) -> None:
    config = json.loads(json.dumps(checkpoints.load(trained, "run").files.lineage["config"]))
    config[key] = {"reference": "os:system", "params": {"command": f"touch {marker}"}}
    rewritten(trained, "checkpoint", "run@step-000000002", {}, {"config": config})
    rewritten(trained, "model", "net", {}, {"config": config})
    ds = write_patterns(trained)
    doors: list[Callable[[], Any]] = [
        lambda: Trainer(quick_config(), trained, ds, run="run").fit(resume=True),
        lambda: require_confirmed(read_record(trained, "net"), []),
        lambda: require_confirmed(read_record(trained, "run"), []),
    ]
    if key == "model":
        doors.append(lambda: deploy(trained, "run", "again"))
    for use in doors:
        with pytest.raises(LeptonError, match=r"os:system|another training"):
            use()
    assert not marker.exists()


def test_a_confirmed_name_confirms_no_other(trained: Store, marker: Path) -> None:
    config = json.loads(json.dumps(FileTable.open(trained, "model", "net").lineage["config"]))
    config["model"] = {"reference": "training_data:own_model", "params": {}}
    config["loss"] = {"reference": "os:system", "params": {"command": f"touch {marker}"}}
    rewritten(trained, "model", "net", {}, {"config": config})
    with pytest.raises(LeptonError, match="os:system"):
        require_confirmed(read_record(trained, "net"), ["training_data:own_model"])
    assert not marker.exists()


def test_a_bundle(trained: Store, marker: Path, bomb: bytes) -> None:
    table = FileTable.open(trained, "model", "net")
    sound = {path: table.read(path) for path in table.paths()}
    for path in [*sound, "archive.pt2"]:
        rewritten(trained, "model", "net", {**sound, path: bomb})
        if path in ("bundle.json", "program.json", "model.safetensors", "parity.safetensors"):
            with pytest.raises(LeptonError):
                load_bundle(trained, "net")
        else:
            assert load_bundle(trained, "net").classes, "files that loading does not need"
    assert not marker.exists()


def test_a_program_calls_functional_operators_alone(trained: Store, marker: Path) -> None:
    program = FileTable.open(trained, "model", "net").read("program.json")
    for name in (b"torch.ops.aten.from_file.default", b"os.system", b"builtins.eval", b"_operator.methodcaller"):
        changed = json.loads(program)
        nodes = changed["program"]["graph_module"]["graph"]["nodes"]
        nodes[0]["target"] = name.decode()
        rewritten(trained, "model", "net", {"program.json": json.dumps(changed).encode()})
        with pytest.raises(LeptonError):
            load_bundle(trained, "net")
    assert not marker.exists()


def test_a_receipt(tmp_path: Path, marker: Path, bomb: bytes) -> None:
    (tmp_path / "r.json").write_bytes(bomb)
    with pytest.raises(LeptonError, match=r"r\.json"):
        Receipt.load(tmp_path / "r.json")
    assert not marker.exists()


def test_reproducing_a_forged_model_needs_its_code_confirmed(trained: Store, marker: Path) -> None:
    """The function itself follows the configuration that it is given: the door is `require_confirmed`, which the command opens first."""
    from click.testing import CliRunner

    from leptonstore.cli.group import lepton
    from trainers.parallel import World

    config = json.loads(json.dumps(FileTable.open(trained, "model", "net").lineage["config"]))
    config["model"] = {"reference": "os:system", "params": {"command": f"touch {marker}"}}
    rewritten(trained, "model", "net", {}, {"config": config})
    trained.flush()
    done = CliRunner().invoke(lepton, ["reproduce", "net", "--force", "--store", trained.url], standalone_mode=False)
    assert isinstance(done.exception, LeptonError) and "os:system" in str(done.exception)
    assert not marker.exists()
    assert callable(reproduce) and World().size == 1
