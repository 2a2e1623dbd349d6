"""Bytes <-> objects. No I/O, no clocks, no randomness: the same object always has the same bytes.

    framed    a line of header + canonical JSON: the store's config, log entries and snapshots
    pack      LPK1: header, records, footer, trailer
    schema    Arrow types <-> JSON
    page      the canonical encoding of one column's values
    node      tree nodes: row groups and internal nodes
    commit    a dataset version

docs/FORMAT.md is the specification; golden vectors in tests/format pin it. Every parser here raises
`FormatDamaged` or `FormatTooNew` and nothing else, allocates no more than the bytes that it was given, and checks every
length before it is used.
"""
