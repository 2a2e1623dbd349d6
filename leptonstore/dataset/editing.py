"""The edits of a dataset as methods of `Dataset`. Each is one commit on the branch that it was opened from, and returns the new version.

What they do, and how they behave when others write, stands in leptonstore/dataset/edit.py and columns.py, which are imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset
    from leptonstore.dataset.rows_in import RowsIn
    from leptonstore.dataset.rules import Rule


class Editing:
    """Methods that make a new version. message, author: of the commit. All raise BadInput, Conflict and StoreFull."""

    def append(self, rows: RowsIn, message: str = "", author: str = "") -> Dataset:
        """Rows (a table, batch, data frame, list of dicts or `Source`) at the end, or where their keys belong.

        Raises SchemaError, DuplicateKey, RuleBroken.
        """
        from leptonstore.dataset import edit

        return edit.append(cast("Dataset", self), rows, message, author)

    def upsert(self, rows: RowsIn, message: str = "", author: str = "") -> Dataset:
        """Keyed tables: rows take the place of those with their keys, new keys come in. Raises as `append`."""
        from leptonstore.dataset import edit

        return edit.upsert(cast("Dataset", self), rows, message, author)

    def update(self, rows: RowsIn, message: str = "", author: str = "") -> Dataset:
        """Keyed tables: set the columns of `rows` in the rows with their keys. Raises as `append`."""
        from leptonstore.dataset import edit

        return edit.update(cast("Dataset", self), rows, message, author)

    def delete(
        self,
        where: Any = None,
        keys: RowsIn = None,
        rows: Sequence[int] | None = None,
        message: str = "",
        author: str = "",
    ) -> Dataset:
        """Without the rows that a condition (`"score < 0.5"`, a pc.Expression) holds for, that have these keys, or these numbers."""
        from leptonstore.dataset import edit

        return edit.delete(cast("Dataset", self), where, keys, rows, message, author)

    def add_column(
        self,
        field: str | pa.Field,
        values: Any,
        columns: Sequence[str] | None = None,
        message: str = "",
        author: str = "",
    ) -> Dataset:
        """A new column from values in row order, a function of a batch with `columns`, or a constant. Raises SchemaError, RuleBroken."""
        from leptonstore.dataset import columns as edits

        return edits.add_column(cast("Dataset", self), field, values, columns, message=message, author=author)

    def rewrite_column(
        self, name: str, values: Any, columns: Sequence[str] | None = None, message: str = "", author: str = ""
    ) -> Dataset:
        """New values for a column, given as for `add_column`. Raises SchemaError, RuleBroken."""
        from leptonstore.dataset import columns as edits

        return edits.rewrite_column(cast("Dataset", self), name, values, columns, message, author)

    def drop_columns(self, names: Sequence[str], message: str = "", author: str = "") -> Dataset:
        """Without these columns. Raises SchemaError (unknown, or one that identifies rows)."""
        from leptonstore.dataset import columns as edits

        return edits.drop_columns(cast("Dataset", self), names, message, author)

    def rename_columns(self, names: Mapping[str, str], message: str = "", author: str = "") -> Dataset:
        """Columns by old name get new ones. Raises SchemaError."""
        from leptonstore.dataset import columns as edits

        return edits.rename_columns(cast("Dataset", self), names, message, author)

    def cast_column(
        self,
        name: str,
        data_type: pa.DataType | None = None,
        metadata: Mapping[str, str | None] | None = None,
        nullable: bool | None = None,
        message: str = "",
        author: str = "",
    ) -> Dataset:
        """Another type, semantic type (field metadata) or nullability. Raises SchemaError when a value does not fit."""
        from leptonstore.dataset import columns as edits

        return edits.cast_column(cast("Dataset", self), name, data_type, metadata, nullable, message, author)

    def change_rules(
        self, name: str, add: Sequence[Rule] = (), remove: Sequence[str] = (), message: str = "", author: str = ""
    ) -> Dataset:
        """Give a column validation rules, or take those of a kind away. Raises RuleBroken when there are rows that break them."""
        from leptonstore.dataset import columns as edits

        return edits.change_rules(cast("Dataset", self), name, add, remove, message, author)
