"""docs/security.md: its commands make certificates that a daemon and a client take, and its figures are those of the code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from leptonstore import limits
from leptonstore.daemon import audit, bounds, live_tokens, rates, reachable, tokens
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.tokens import TokenRing
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.errors import LeptonError
from leptonstore.store import Store
from leptonstore.testing.daemon import running

PAGE = (Path(__file__).parents[2] / "docs" / "security.md").read_text()


def test_the_commands_of_the_page_make_mutual_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (script,) = (block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "openssl" in block)
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    table = pa.table({"id": [1, 2, 3]})
    with Store.create(tmp_path / "store") as store:
        write_dataset(store, "birds", Source(table.schema, ("id",), lambda: iter(table.to_batches())))
        certificate = re.findall(r"--certificate (\S+)", PAGE)[0]
        TokenRing.of(store).add("node 7", [Grant(Scope.READ)], certificate=certificate)
    files = {"tls_cert": "server.crt", "tls_key": "server.key", "client_ca": "ca.crt"}
    told = {name: str(tmp_path / file) for name, file in files.items()}
    with running(tmp_path / "store", in_process=True, cache_bytes=0, **told) as served:
        assert served.url.startswith("lepton+tls://")
        monkeypatch.setenv("LEPTON_CA", str(tmp_path / "ca.crt"))
        with pytest.raises(LeptonError):  # a token alone is not enough where certificates are asked for
            monkeypatch.setenv("LEPTON_TOKEN", served.token)
            monkeypatch.setattr("leptonstore.limits.WIRE_OPEN_S", 0.5)
            Store.open(served.url)
        monkeypatch.setenv("LEPTON_CLIENT_CERT", str(tmp_path / "client.crt"))
        monkeypatch.setenv("LEPTON_CLIENT_KEY", str(tmp_path / "client.key"))
        monkeypatch.delenv("LEPTON_TOKEN")
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "somebody else"))  # the daemon's own token is not found
        with Store.open(served.url) as opened:
            assert Dataset.open(opened, "birds").to_arrow().num_rows == 3
            with pytest.raises(LeptonError):
                write_dataset(opened, "birds", Source(table.schema, ("id",), lambda: iter(table[:1].to_batches())))


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("{:.0f} seconds late", tokens.CLOCK_TOLERANCE_S),
        ("knows within {:.0f} seconds", live_tokens.TOKEN_STALE_S),
        ("go on for {:.0f} seconds", live_tokens.TOKEN_AWAY_S),
        ("takes longer than {:.0f} seconds", reachable.WALK_WAIT_S),
        ("fails more than {:.0f} times", rates.RateLimits().failures.burst),  # type: ignore[union-attr]
        ("by default {:,.0f} requests a second", rates.RateLimits().principal_requests.per_s),  # type: ignore[union-attr]
        ("rotated at {:.0f} MiB", audit.AUDIT_FILE_BYTES >> 20),
        ("at most {:.0f} KiB of arguments", limits.WIRE_HEADER_BYTES_MAX >> 10),
        ("{:.0f} MiB of digests", limits.WIRE_PAYLOAD_BYTES_MAX >> 20),
        ("a batch of `put` {:.0f} MiB", bounds.PUT_BATCH_BYTES_MAX >> 20),
    ],
)
def test_the_figures_of_the_page_are_those_of_the_code(words: str, value: float) -> None:
    assert words.format(value) in " ".join(PAGE.split())


def test_every_scope_is_on_the_page() -> None:
    for scope in Scope:
        assert f"| `{scope.value}` |" in PAGE
