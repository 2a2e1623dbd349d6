"""Several daemons over one object store as one cooperative cache. Truth is the object store; there is no consensus of our own.

bounds.py       every bound of it            members.py     a member, its labels, and how far it is
rendezvous.py   who owns a block             membership.py  who the members are, and which of them answer
blocks.py       the blocks that are here     keep.py        which of them go when there is no room      block_files.py  those on disk
wire.py         what one member asks of another, as bytes    peers.py  the calls    secret.py  by what members know each other
sharing.py      where a block is read        cooperative.py the tier that a store is opened over        answers.py  what peers are answered
prefetch.py     loaders' plans, fetched ahead                cluster.py     all of it, for the daemon
"""
