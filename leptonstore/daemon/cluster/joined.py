"""A daemon and its cluster: what daemon.py calls.

cluster = cluster_of(settings, host)            None: its Store objects read their home alone
store = open_store(url, unlock, cluster)
join(cluster, service, access, store)           when the planes exist, before they are told to others
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from leptonstore.daemon.access import Access, Principal
from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.cluster import DNS, Cluster, ClusterSettings
from leptonstore.daemon.cluster.members import Member
from leptonstore.daemon.cluster.peers import PeerTls
from leptonstore.daemon.service import Service
from leptonstore.daemon.settings import Settings
from leptonstore.digest import Digest
from leptonstore.errors import BadInput, SourceError
from leptonstore.store import Store
from leptonstore.store import keys as store_keys
from leptonstore.store.keys import Unlock
from leptonstore.store.wire.address import Host
from leptonstore.store.wire.credentials import credentials_for


def cluster_of(settings: Settings, host: str) -> Cluster | None:
    """The cluster that the settings describe; of this daemon alone, a block cache; None when neither was asked for.

    host: by which others reach this daemon. Raises BadInput, SourceError, NotPermitted, TierUnavailable.
    """
    if not settings.members and not settings.block_cache:
        return None
    if settings.members and not settings.port:
        raise BadInput("a daemon of a cluster is known by its port: give --port")
    home, config = Store.read_config(settings.store)
    return Cluster(home, config.store_id.hex(), cluster_settings(settings, host))


def cluster_settings(settings: Settings, host: str) -> ClusterSettings:
    """What the daemon's settings say of it. Raises BadInput, SourceError."""
    named = f"[{host}]" if ":" in host and not host.startswith("[") else host
    me = Member(f"{named}:{settings.port or 1}", settings.rack, settings.zone)
    budget = settings.block_cache_bytes
    disk = Path(settings.block_cache) if settings.block_cache else None
    return ClusterSettings(
        me,
        _members_of(settings),
        ram_bytes=budget if disk is None else bounds.RAM_BEFORE_DISK_BYTES,
        disk=disk,
        disk_bytes=0 if disk is None else budget,
        secret=None if not settings.cluster_secret else _read(settings.cluster_secret),
        tls=_tls_of(settings, host),
    )


def _members_of(settings: Settings) -> str:
    """As ClusterSettings has it: several may be given, of which each is one or more addresses."""
    text = ",".join(settings.members)
    if text.startswith(DNS) and text.count(":") == 1:
        return f"{text}:{settings.port}"
    return text


def _tls_of(settings: Settings, host: str) -> PeerTls | None:
    """Members show this daemon's own certificate, and believe LEPTON_CA as clients do; else who signs those of clients; else the chain that
    this daemon shows itself (one certificate for all of them)."""
    if not settings.tls:
        return None
    chain, key = _read(settings.tls_cert), _read(settings.tls_key)
    believed = credentials_for(Host(host, settings.port), tls=True).ca
    if settings.client_ca:
        return PeerTls(believed or _read(settings.client_ca), chain, key)
    return PeerTls(believed or chain)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", path) from None


def open_store(url: str, unlock: Unlock | None, cluster: Cluster | None) -> Store:
    """Store.open, with packs read through the cluster."""
    if cluster is None:
        return Store.open(url, unlock=unlock)
    home, config = Store.read_config(url)
    return Store(cluster.tier(home), config, None, store_keys.open_keys(home, config, unlock))


def join(cluster: Cluster, service: Service, access: Access, store: Store) -> None:
    """From now on peers are answered, and this daemon is a member. `store` is the service's own: what it lists is kept."""
    service.add("block", lambda principal, request: cluster.block(request))
    service.add("member", lambda principal, request: cluster.member(request))
    service.members = cluster.addresses

    def planned(principal: Principal, reader: str, digests: Sequence[Digest], more: bool) -> None:
        cluster.plan(store, f"{principal.id} {reader}", digests, more)

    service.planned = planned
    access.is_peer = cluster.is_peer

    def listed() -> Collection[str]:
        store.refresh()
        return store.state.packs

    cluster.keep_only(store.state.packs)
    cluster.start(listed)
