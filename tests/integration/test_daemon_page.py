"""docs/daemon.md: its settings; docs/deploy: what can be looked at here fits together."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from leptonstore.cli.group import lepton
from leptonstore.daemon.settings import make_settings, read_config

yaml = pytest.importorskip("yaml")
DOCS = Path(__file__).parents[2] / "docs"
DEPLOY = DOCS / "deploy"
PAGE = (DOCS / "daemon.md").read_text()


def commands(text: str) -> list[list[str]]:
    """The `lepton` commands in a text, without what stands around them."""
    found = re.findall(r"(?:^|\$\(|[\s(])(lepton (?:serve|token|ls)\b[^\n#)]*)", text, re.MULTILINE)
    return [shlex.split(one) for one in found]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What click makes of a command line; it raises for one that is wrong."""
    command, context = lepton, lepton.make_context("lepton", ["ls"])
    while hasattr(command, "get_command"):
        found = command.get_command(context, arguments[0])
        assert found is not None, arguments
        command, arguments = found, arguments[1:]
    return dict(command.make_context(str(command.name), list(arguments)).params)


def served_with(arguments: list[str], tmp_path: Path, toml: str | None = None) -> None:
    """A command line of `lepton serve`, and its file, are settings that hold together."""
    told = parsed(["serve", *arguments])
    told.pop("as_json")
    store, config = told.pop("store") or "", told.pop("config")
    if config is not None and toml is not None:
        config = tmp_path / "serve.toml"
        config.write_text(toml)
    make_settings(store, config, **{name: value for name, value in told.items() if value not in (None, ())})


def test_the_systemd_unit_is_one(tmp_path: Path) -> None:
    unit = (DEPLOY / "lepton-serve.service").read_text()
    (line,) = re.findall(r"^ExecStart=\S*lepton (.*)$", unit, re.MULTILINE)
    served_with(shlex.split(line)[1:], tmp_path, 'store = "/var/lib/lepton/store"')
    stop_s = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    usual = make_settings("store")
    assert stop_s > usual.drain_wait_s + usual.drain_s + 10
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / "lepton-serve.service"
    copy.write_text(unit.replace("/opt/lepton/bin/lepton", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "lepton-serve.service" not in done.stderr, done.stderr


def test_the_container_starts_a_command_that_there_is(tmp_path: Path) -> None:
    text = (DEPLOY / "Containerfile").read_text()
    entry, command = (re.findall(rf"^{name} (\[.*\])$", text, re.MULTILINE)[0] for name in ("ENTRYPOINT", "CMD"))
    line = [*yaml.safe_load(entry), *yaml.safe_load(command)]
    assert line[:2] == ["lepton", "serve"]
    served_with(line[2:], tmp_path)
    (extras,) = re.findall(r'"\.\[(.*?)\]"', text)
    setup = (DOCS.parent / "setup.cfg").read_text()
    assert all(re.search(rf"^{extra} =$", setup, re.MULTILINE) for extra in extras.split(","))


def test_the_kubernetes_manifests_fit_together(tmp_path: Path) -> None:
    found = {
        (one["kind"], one["metadata"]["name"]): one
        for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    }
    assert {kind for kind, _ in found} == {"ConfigMap", "Service", "StatefulSet", "PodDisruptionBudget"}
    pods = found["StatefulSet", "lepton"]["spec"]
    template = pods["template"]
    labels = template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ("Service", pods["serviceName"]) in found
    for (kind, _), one in found.items():
        if kind == "Service":
            assert one["spec"]["selector"] == labels
            assert all(port["targetPort"] in ports for port in one["spec"]["ports"])
    assert found["PodDisruptionBudget", "lepton"]["spec"]["selector"]["matchLabels"] == labels
    assert pods["selector"]["matchLabels"] == labels
    volumes = {one["name"] for one in template["spec"]["volumes"]} | {
        one["metadata"]["name"] for one in pods["volumeClaimTemplates"]
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    toml = found["ConfigMap", "lepton"]["data"]["serve.toml"]
    served_with([argument.replace("$(POD_NAME)", "lepton-0") for argument in container["args"]], tmp_path, toml)
    (tmp_path / "serve.toml").write_text(toml)
    settings = make_settings(config=tmp_path / "serve.toml")
    assert ports == {"flight": settings.port, "http": settings.http_port}
    assert template["spec"]["terminationGracePeriodSeconds"] > settings.drain_wait_s + settings.drain_s + 10
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (settings.tls_cert, settings.tls_key, settings.block_cache, settings.audit_log):
        assert any(path.startswith(f"{mount}/") for mount in mounts), path
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["scheme"] == "HTTPS" and asked["port"] in ports and asked["path"] in ("/healthz", "/readyz")


def test_prometheus_is_told_where_metrics_are() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["scheme"] == "https"
    port = make_settings("store").http_port
    assert all(target.endswith(f":{port}") for one in job["static_configs"] for target in one["targets"])


def test_every_file_says_that_nothing_here_has_run_it() -> None:
    for file in DEPLOY.iterdir():
        assert re.search(r"[Nn]othing of ours has|no test of ours has|no Prometheus has run", file.read_text()), (
            file.name
        )


def test_examples_of_settings_are_settings(tmp_path: Path) -> None:
    examples = re.findall(r"`([a-z-]+ = [^`]+)`", PAGE)
    assert examples
    for number, text in enumerate(examples):
        tomllib.loads(text)
        (tmp_path / f"{number}.toml").write_text(text)
        assert read_config(tmp_path / f"{number}.toml")


def test_help_is_quick_and_imports_no_network() -> None:
    program = (
        "import sys, leptonstore.cli as c; sys.argv = ['lepton', 'serve', '--help']\n"
        "try: c.main()\n"
        "finally: print([n for n in ('pyarrow.flight', 'starlette', 'uvicorn', 'prometheus_client') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--tls-cert" in done.stdout
    assert done.stdout.strip().endswith("[]"), done.stdout[-300:]
