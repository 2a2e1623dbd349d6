"""Collect: bring raw data into a dataset again and again, only what is new, each row with where it came from.

    items.py     what is to be collected: files of a place, of a list of URLs, of a manifest
    fetch.py     an item's bytes: from a path, a bucket, HTTP (rate, retries), checked against its checksums
    collect.py   items -> rows of a keyed table, a commit now and then
    watch.py     a directory, whenever its files change
    rows.py      rows of SQL, by DuckDB
    writer.py    rows that arrive one by one (a queue, Kafka), as few commits

Every row says its source, time, digest and licence. What did not change is not fetched, and its row stays as it is.
"""

from leptonstore.process.collect.collect import Collected, collect
from leptonstore.process.collect.items import Item, items_of_list, items_of_place
from leptonstore.process.collect.rows import collect_sql
from leptonstore.process.collect.watch import watch
from leptonstore.process.collect.writer import Writer

__all__ = ["Collected", "Item", "Writer", "collect", "collect_sql", "items_of_list", "items_of_place", "watch"]
