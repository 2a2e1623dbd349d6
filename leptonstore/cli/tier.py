"""lepton tier format-block"""

from __future__ import annotations

import uuid

import click

from leptonstore.cli.quota import Size
from leptonstore.cli.runtime import emit, human_bytes, json_option
from leptonstore.tiers.block import open_block
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.block_scan import volume_path


@click.group("tier")
def command() -> None:
    """Prepare places where packs can live beside the store's own directory. All take --json.

    \b
    Example:
      lepton tier format-block /data/volume --size 100G
    """


@command.command("format-block")
@click.argument("path")
@click.option("--size", type=Size(), metavar="SIZE", help="How large (100G). Of a block device: all of it by default.")
@click.option("--force", is_flag=True, help="Also where there is something: it is lost.")
@json_option
def format_block_(path: str, size: int | None, force: bool, as_json: bool) -> None:
    """Make PATH a block volume for packs: a file of fixed size, or a raw block device.

    The space of a file is taken at once. A file or device that holds something, or is a volume already, is refused (exit code 2) without
    --force, and one that is in use always (5). Exit code 6: the filesystem has less space than SIZE.

    \b
    Example:
      lepton tier format-block /data/volume --size 100G
      lepton tier format-block /dev/nvme1n1
    """
    place = volume_path(path)
    made = format_block(place, size, force=force)
    told = {
        "url": open_block(place).url,
        "volume_id": str(uuid.UUID(bytes=made.volume_id)),
        "size_bytes": made.size,
        "capacity_bytes": made.capacity,
        "unit_bytes": made.unit,
    }
    text = f"{told['url']}: a volume of {human_bytes(made.size)} that holds {human_bytes(made.capacity)} of packs"
    emit(told, as_json, text)
