"""Rows whose label is probably wrong: confident learning.

A model that has not seen a row says how probable each class is; cleanlab compares that with the label, class by class: Northcutt, Jiang and
Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels (JAIR 70, 2021). What is found is a suspicion: let a person look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import BadInput, MissingExtra, SchemaError, listed
from leptonstore.process import columns as column_values
from leptonstore.process import digests, images
from leptonstore.process.checks import chosen
from leptonstore.process.checks.check import TAGS, Found, TableCheck
from leptonstore.process.checks.label_features import IMAGE_TYPE, TEXT_TYPE, image_features, text_features
from leptonstore.process.checks.label_model import gathered, out_of_fold
from leptonstore.process.findings import findings_table
from leptonstore.process.texts.characters import versions

Rows = NDArray[np.int64]
FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given")
ROWS_PER_FOLD_MIN = 2  # of a class, on average; rarer classes cannot be learnt


@dataclass(frozen=True)
class LabelErrors(TableCheck):
    """Labels that a model, which has not seen the row, finds improbable, as far as cleanlab's filter takes them for errors.

    label:   a column of classes (class labels, integers or strings); default: the first class label.
    columns: what the model sees: images, strings, numbers; default: all images, else all texts, else all numbers that identify nothing.
    probabilities: a column with a probability for each class (a list of floats), from a model of yours that has not seen these rows. Then
             `columns` and `folds` do not count.
    folds:   into how many parts rows are dealt, by what identifies them; each is judged by a model of the others.
    filter:  cleanlab's: prune_by_noise_rate, prune_by_class, both, confident_learning, predicted_neq_given (most to fewest assumptions).
    identity: the columns that deal rows into folds; default: the identity of the dataset. Equal rows then stand in one fold.
    score:   1 - the probability of the label. "fix" writes the most probable class instead.

    Rows without label, without one of the images or texts, and classes with fewer than 2 x folds rows take no part. Of each row some
    hundred bytes are held (images 340, texts up to 1,024); models learn from at most LABEL_TRAIN_ROWS_MAX rows.
    """

    name: ClassVar[str] = "check.label_errors"
    can_fix: ClassVar[bool] = True
    label: str = ""
    columns: Sequence[str] = ()
    probabilities: str = ""
    folds: int = 5
    filter: str = "prune_by_noise_rate"
    identity: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter not in FILTERS:
            raise BadInput(f"{self.name} has no filter {self.filter!r}; it has: {listed(FILTERS)}")
        if not 2 <= self.folds <= limits.LABEL_FOLDS_MAX:
            raise BadInput(f"{self.name}: folds is a number from 2 to {limits.LABEL_FOLDS_MAX}, not {self.folds}")

    def bound(self, source: Dataset, schema: pa.Schema) -> Self:
        """With the names of the columns. Raises MissingExtra without cleanlab."""
        for module in ("cleanlab", "sklearn"):
            if find_spec(module) is None:
                raise MissingExtra("searching for label errors", "labels", module)
        label = chosen.class_column(self.name, schema, self.label)
        identity = tuple(self.identity) or tuple(name for name in source.identity if name in schema.names)
        if self.probabilities:
            return replace(self, label=label, identity=identity)
        return replace(self, label=label, identity=identity, columns=_seen(self, schema, label, identity))

    def libraries(self) -> dict[str, str]:
        """What guesses, what judges, and what decides the features."""
        return {name: version(name) for name in ("cleanlab", "numpy", "scikit-learn")} | _seeing()

    def features_recipe(self) -> dict[str, Any]:
        """Folds and filter are of no meaning to features, nor is what guesses and judges."""
        found = super().features_recipe()
        return {name: value for name, value in found.items() if name not in ("folds", "filter")} | {
            "libraries": _seeing()
        }

    def fixes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The label."""
        return (chosen.class_column(self.name, schema, self.label),)

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """Label, what the model sees (or said), identity. Raises SchemaError."""
        label = chosen.class_column(self.name, schema, self.label)
        if self.probabilities:
            field = column_values.field_of(self.name, schema, self.probabilities)
            if not _is_floats(field.type):
                raise SchemaError(
                    f"{self.name}: column {field.name!r} is {field.type}; probabilities are a list of floats"
                )
            return (label, field.name)
        seen = _seen(self, schema, label, self.identity)
        for name in self.identity:
            column_values.field_of(self.name, schema, name)
        return tuple(dict.fromkeys((label, *seen, *self.identity)))

    def by_digest(self, schema: pa.Schema) -> tuple[str, ...]:
        """What identifies a row and is not seen otherwise."""
        if self.probabilities:
            return ()
        label = chosen.class_column(self.name, schema, self.label)
        return tuple(name for name in self.identity if name not in (label, *_seen(self, schema, label, self.identity)))

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """Fold, label with the name of its class, and what the model sees, by place."""
        label = schema.field(chosen.class_column(self.name, schema, self.label))
        fields = [("key", pa.uint64()), ("label", label.type), ("class", pa.string())]
        if self.probabilities:
            return pa.schema([*fields, ("said", pa.list_(pa.float32()))])
        kinds = [_kind(schema.field(name)) for name in _seen(self, schema, label.name, self.identity)]
        return pa.schema([*fields, *((f"{kind}{at}", _TYPES[kind]) for at, kind in enumerate(kinds) if kind)])

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """As `measures`. Encoded images are decoded, in a few threads."""
        schema = batch.schema
        label = chosen.class_column(self.name, schema, self.label)
        keys = np.zeros(batch.num_rows, np.uint64)
        if self.identity and not self.probabilities:
            known = digests.combined([digests.digests_in(batch, name) for name in self.identity])
            keys = np.ascontiguousarray(digests.as_numbers(known)[:, 0])
        arrays = [pa.array(keys), batch.column(label), chosen.named_classes(batch, label)]
        if self.probabilities:
            arrays.append(_floats(batch.column(self.probabilities)))
        else:
            arrays += [_features(batch, name) for name in _seen(self, schema, label, self.identity)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.measures(schema))

    def find_in(self, features: pa.Table) -> Found:
        """Guess, and judge."""
        labels = features["label"].combine_chunks()
        codes, values = _classes(labels)
        wanted = codes >= 0
        if self.probabilities:
            rows, given, said = _as_told(features["said"].combine_chunks(), labels, wanted)
            classes = pa.array(np.arange(said.shape[1]))
        else:
            rows, present, given, said = self._guessed(features, codes, wanted)
            classes = values.take(pa.array(present))
        if not len(rows) or said.shape[1] < 2:
            return Found(findings_table(self.tag, self.label, [], []), {self.label: labels})
        issues, quality = _judged(given, said, self.filter)
        best = said.argmax(axis=1)
        wrong = np.flatnonzero(issues & (best != given))
        names = _names(labels, features["class"].combine_chunks())
        offered = classes.take(pa.array(best[wrong])).to_pylist()
        now = labels.take(pa.array(rows[wrong])).to_pylist()
        details = [
            f"labelled {names.get(old, old)}, looks like {names.get(new, new)} ({said[at, best[at]]:.0%})"
            for old, new, at in zip(now, offered, wrong.tolist(), strict=True)
        ]
        table = findings_table(self.tag, self.label, rows[wrong], details, 1.0 - quality[wrong])
        return Found(table, {self.label: _corrected(labels, rows[wrong], offered)} if self.action == "fix" else None)

    def _guessed(
        self, features: pa.Table, codes: NDArray[np.int64], wanted: NDArray[np.bool_]
    ) -> tuple[Rows, Rows, Rows, NDArray[np.float64]]:
        """The rows that take part, the classes that do, the label of each row as a place among them, and what models say of the rows."""
        parts: dict[str, list[pa.Array]] = {kind: [] for kind in _TYPES}
        for name in features.column_names:
            kind = name.rstrip("0123456789")
            if kind in parts:
                parts[kind].append(features[name].combine_chunks())
        made, known = gathered(parts["image"], parts["text"], parts["number"])
        wanted = wanted & known
        often = np.bincount(codes[wanted], minlength=int(codes.max(initial=0)) + 1) >= ROWS_PER_FOLD_MIN * self.folds
        rows = np.flatnonzero(wanted & often[codes])
        present, given = np.unique(codes[rows], return_inverse=True)
        if len(rows) * len(present) * 8 > limits.LABEL_GUESSES_BYTES_MAX:
            raise BadInput(
                f"{self.name}: {len(rows):,} rows of {len(present):,} classes are more than are judged at a time; "
                "take a part of them (rows.sample, rows.select) or fewer classes"
            )
        keys = features["key"].to_numpy()[rows]
        return rows, present, given, out_of_fold(made.of(rows), given, keys, self.folds, len(present))


_TYPES = {"image": IMAGE_TYPE, "text": TEXT_TYPE, "number": pa.float64()}


def _seeing() -> dict[str, str]:
    """What decodes images, and the version of Unicode, which says what a word is."""
    return images.decoders() | versions()


def _kind(field: pa.Field) -> str:
    """How a column is seen: "image", "text", "number", or "" (not at all)."""
    if column_values.image_columns(pa.schema([field])):
        return "image"
    if chosen.is_text(field.type):
        return "text"
    return "number" if column_values.is_number(field.type) else ""


def _seen(check: LabelErrors, schema: pa.Schema, label: str, identity: Sequence[str]) -> tuple[str, ...]:
    """What the model sees. Raises SchemaError."""
    others = pa.schema([one for one in schema if one.name not in (label, TAGS)])
    if check.columns:
        return chosen.chosen_columns(
            check.name, others, check.columns, lambda one: bool(_kind(one)), "images, strings or numbers"
        )
    wanted: list[tuple[str, Any]] = [
        ("image", lambda one: True),
        ("text", lambda one: semantic_of(one) == "text"),
        ("number", lambda one: chosen.is_measured(one) and one.name not in identity),
    ]
    for kind, fits in wanted:
        found = tuple(one.name for one in others if _kind(one) == kind and fits(one))
        if found:
            return found
    raise SchemaError(
        f"{check.name} guesses labels from images, texts or numbers and there are none; name the columns in `columns`"
    )


def _features(batch: pa.RecordBatch, name: str) -> pa.Array:
    field, array = batch.schema.field(name), batch.column(name)
    kind = _kind(field)
    if kind == "image":
        return image_features(array, column_values.image_columns(pa.schema([field]))[0])
    return text_features(array) if kind == "text" else array.cast(pa.float64(), safe=False)


def _is_floats(data_type: pa.DataType) -> bool:
    if isinstance(data_type, pa.FixedShapeTensorType):
        data_type = data_type.storage_type
    kinds = pa.types
    lists = kinds.is_list(data_type) or kinds.is_large_list(data_type) or kinds.is_fixed_size_list(data_type)
    return bool(lists and kinds.is_floating(data_type.value_type))


def _floats(array: pa.Array) -> pa.Array:
    storage = array.storage if isinstance(array, pa.ExtensionArray) else array
    return storage.cast(pa.list_(pa.float32()))


def _classes(labels: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Labels as 0, 1, … in the order of their values, -1 for null; and the values."""
    values = pc.unique(labels.drop_null())
    values = values.take(pc.array_sort_indices(values))
    codes = pc.fill_null(pc.index_in(labels, values), -1)
    return codes.to_numpy(zero_copy_only=False).astype(np.int64), values


def _names(labels: pa.Array, classes: pa.Array) -> dict[Any, str]:
    """Label -> name of its class."""
    table = pa.table({"label": labels, "class": classes}).group_by("label").aggregate([("class", "min")])
    return dict(zip(table["label"].to_pylist(), table["class_min"].to_pylist(), strict=True))


def _as_told(said: pa.Array, labels: pa.Array, wanted: NDArray[np.bool_]) -> tuple[Rows, Rows, NDArray[np.float64]]:
    """Rows, labels and probabilities, from a column of these. Raises BadInput."""
    if not pa.types.is_integer(labels.type):
        raise BadInput(f"check.label_errors: probabilities go with labels that are numbers, not {labels.type}")
    lengths = said.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    known = lengths > 0
    classes = int(lengths.max(initial=0))
    if len(set(lengths[known].tolist())) > 1:
        raise BadInput("check.label_errors: rows have probabilities of different numbers of classes")
    table = (
        said.filter(pa.array(known)).flatten().to_numpy(zero_copy_only=False).reshape(-1, classes).astype(np.float64)
    )
    given = labels.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    sums = table.sum(axis=1)
    if not (np.isfinite(table).all() and (table >= 0).all() and (np.abs(sums - 1) < 0.01).all()):
        raise BadInput("check.label_errors: probabilities of a row are numbers from 0 to 1 whose sum is 1")
    rows = np.flatnonzero(known)
    take = wanted[rows] & (given[rows] >= 0) & (given[rows] < classes)
    return rows[take], given[rows][take], table[take] / sums[take, None]


def _judged(
    given: NDArray[np.int64], said: NDArray[np.float64], filter_by: str
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Of each row whether cleanlab takes it for an error, and the probability of its label."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    wrong = find_label_issues(given, said, filter_by=filter_by, n_jobs=1)
    return np.asarray(wrong, np.bool_), np.asarray(
        get_label_quality_scores(given, said, method="self_confidence"), np.float64
    )


def _corrected(labels: pa.Array, rows: NDArray[np.int64], values: Sequence[Any]) -> pa.Array:
    """The labels with other values in some rows."""
    mask = np.zeros(len(labels), np.bool_)
    mask[rows] = True
    return pc.replace_with_mask(labels, pa.array(mask), pa.array(values, labels.type))
