"""Several daemons over one object store as one cooperative cache. Truth is the object store; there is no consensus of our own.

cluster.py      all of it, as one object                joined.py       how daemon.py puts it to work
members.py      a member, its labels, how far it is     membership.py   who the members are, and which of them answer
rendezvous.py   who owns a block
blocks.py       the blocks that are here                keep.py         which of them go    block_files.py  those on disk
sharing.py      where a part of a block is read         flights.py      from the bucket, once for all who ask
windowed.py     how much is under way at a time         recent.py       a dictionary that forgets
cooperative.py  the tier that a store is opened over    prefetch.py     loaders' plans, fetched ahead
wire.py         what members ask of each other          peers.py        the calls           answers.py      what they are answered
secret.py       by what members know each other         bounds.py       every bound
"""
