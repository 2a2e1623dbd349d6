"""Settings of a daemon: one list for options, file and page; what is dangerous is refused."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore.daemon.settings import SETTINGS, Settings, make_settings, reloaded, table
from leptonstore.errors import BadInput, LeptonError, SourceError

PAGE = (Path(__file__).parents[2] / "docs" / "daemon.md").read_text()


def test_the_page_has_the_table() -> None:
    assert table() in PAGE


def test_the_command_has_an_option_for_each() -> None:
    from leptonstore.cli.serve import command

    options = {one for parameter in command.params for one in parameter.opts}
    assert {f"--{one.option}" for one in SETTINGS.values()} <= options


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "192.168.0.1"])
def test_beyond_loopback_needs_tls_or_insecure(host: str) -> None:
    with pytest.raises(BadInput, match="--insecure"):
        make_settings("store", host=host)
    assert make_settings("store", host=host, insecure=True).host == host
    assert make_settings("store", host=host, tls_cert="c", tls_key="k").tls


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.9.1"])
def test_loopback_needs_nothing(host: str) -> None:
    assert make_settings("store", host=host).host == host


@given(st.integers(0, 1 << 20), st.sampled_from([("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)]))
def test_sizes_with_and_without_units(count: int, unit: tuple[str, int]) -> None:
    setting = SETTINGS["bytes_rate"]
    assert setting.parse(f"{count}{unit[0]}") == count * unit[1]
    assert setting.parse(count) == count


@given(st.text(max_size=20) | st.integers() | st.floats() | st.booleans() | st.lists(st.text(), max_size=2) | st.none())
def test_any_value_of_any_setting_is_taken_or_refused_by_name(value: object) -> None:
    for one in SETTINGS.values():
        try:
            taken = one.parse(value)
        except BadInput as error:
            assert str(error).startswith(one.option)
        else:
            assert one.parse(taken) == taken


def test_the_file_is_under_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('store = "s3://bucket/a/b"\nport = 1000\ndrain-wait = "2m"\nallow_host = ["a", "b"]\n')
    made = make_settings(config=file, port=2000)
    assert made == Settings(
        "s3://bucket/a/b", "b", port=2000, http_port=2001, drain_wait_s=120.0, allow_host=("a", "b")
    )
    assert make_settings("other", config=file).store == "other"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 7400", "'prot', which is no setting"),
        ("port = 'x'", "whole number"),
        ("port = 70000", "between 0 and 65,535"),
        ("port = true", "whole number"),
        ("anonymous = 'write'", "one of none, read"),
        ("drain = '3 weeks'", "such as 30s"),
        ("name = '../x'", "letters"),
        ("port = 7400\nhttp-port = 7400", "another port"),
        ("store = 'lepton://a/b'", "served by a daemon already"),
        ("cache-bytes = 5", "0 for no hot cache"),
        ("block-cache-bytes = 1", "at least 67,108,864"),
        ("allow-host = ['a b']", "Host header"),
    ],
)
def test_a_wrong_file_is_told_by_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(BadInput, match=re.escape(said)):
        make_settings("" if "store" in text else "store", config=tmp_path / "f.toml")


@given(st.binary(max_size=200))
def test_any_file_is_settings_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("f") / "f.toml"
    file.write_bytes(data)
    with contextlib.suppress(LeptonError):
        make_settings("store", config=file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        make_settings("store", config=tmp_path / "none.toml")


def test_a_reload_takes_what_it_may_and_names_the_rest() -> None:
    before, after = make_settings("store"), make_settings("store", requests_rate=5, port=9)
    taken, kept = reloaded(before, after)
    assert taken.requests_rate == 5 and taken.port == before.port
    assert kept == ["port", "http-port"]


@pytest.mark.parametrize(
    ("store", "name"),
    [("/data/my store", "my-store"), ("s3://bucket/prefix/", "prefix"), ("s3://bucket", "bucket"), ("/", "store")],
)
def test_a_name_for_urls_is_made_of_the_place(store: str, name: str) -> None:
    assert make_settings(store).name == name
