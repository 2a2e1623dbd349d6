"""docs/cluster.md: its commands are commands, and what it says of sizes and names is so."""

from __future__ import annotations

import re
from pathlib import Path

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.joined import cluster_settings
from leptonstore.daemon.cluster.secret import DOCUMENT
from leptonstore.daemon.settings import SETTINGS, make_settings
from leptonstore.limits import GIB, MIB
from tests.integration.test_daemon_page import commands, parsed

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()


def test_the_command_of_the_page_makes_a_member():
    (line,) = commands(PAGE)
    given = parsed(line[1:])
    told = {name: value for name, value in given.items() if name in SETTINGS and value not in (None, ())}
    settings = make_settings(given["store"], **told)
    made = cluster_settings(settings, settings.host)
    assert made.me.address == "10.0.0.11:7400" and made.members.count(":7400") == 3
    assert made.disk_bytes == 200 * GIB and str(made.disk) == "/nvme/blocks"


def test_figures_and_names_of_the_page_are_those_of_the_code():
    assert bounds.BLOCK_BYTES == MIB and bounds.STRETCH_BLOCKS == 8
    assert f"`{DOCUMENT}`" in PAGE
    assert bounds.MEMBERS_LOOK_S == 5 and bounds.AWAY_S == 1 and bounds.AWAY_S_MAX == 30 and bounds.FORGET_S == 60
    assert bounds.COPY_ASKED_SHARE == 1 / 2 and bounds.AHEAD_SHARE == 1 / 16
    for name in re.findall(r"`(here|peer|answered|bucket|hedged|damaged)`", PAGE):
        assert (
            f'"{name}"'
            in (Path(bounds.__file__).parent / "sharing.py").read_text()
            + (Path(bounds.__file__).parent / "flights.py").read_text()
        )
