"""Between a tree of frozen dataclasses and nested dicts (JSON, TOML): every key known, every value held to its declared type.

    build(cls, tree)      dicts -> dataclasses; an unknown key is refused with the nearest one. A string where a dataclass has a
                          `reference` stands for that alone: model = "trainers.models:cnn"
    as_tree(config)       dataclasses -> dicts, with objects that have no name as they are
    as_json(config)       the same, with what cannot be written down told (trainers.reference)
    merged(tree, over)    `over` put into `tree`, key by key
    with_dotted({}, …)    {"optimizer.lr": 1} -> {"optimizer": {"lr": 1}}

Knows nothing of training: the tree is trainers.config.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from leptonstore.errors import BadInput, SourceError
from trainers.reference import is_told, nearest, told

# A configuration is written by hand: far above any, low enough to be read at once.
TOML_BYTES_MAX = 1 << 20
# Dicts whose keys are not the tree's: what is given takes the place of what was there.
WHOLE = ("params", "mesh", "transforms", "validation_transforms")

T = TypeVar("T")


def build(cls: type[T], tree: Any, path: str = "") -> T:
    """One dataclass of the tree from a dict; absent keys take their defaults. Raises BadInput that names the key."""
    hints = typing.get_type_hints(cls)
    if "reference" in hints and isinstance(tree, str):
        tree = {"reference": tree}
    if not isinstance(tree, Mapping):
        raise BadInput(f"{path or 'the train config'} must be an object with keys, not {tree!r}")
    for key in tree:
        if key not in hints:
            raise _unknown(f"{path}.{key}" if path else str(key), str(key), list(hints))
    values = {key: _value(hints[key], value, f"{path}.{key}" if path else key) for key, value in tree.items()}
    try:
        return cls(**values)
    except TypeError:
        needed = [one.name for one in dataclasses.fields(cls) if one.default is one.default_factory]  # type: ignore[arg-type]  # both MISSING
        raise BadInput(f"{path} needs {' and '.join(name for name in needed if name not in values)}") from None


def as_tree(config: Any) -> Any:
    """Nested dicts and lists of a configuration (any part of it); objects that have no name stay what they are."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {one.name: as_tree(getattr(config, one.name)) for one in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: as_tree(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_tree(value) for value in config]
    return config


def as_json(tree: Any) -> Any:
    """A tree with only what JSON has: objects are told."""
    if isinstance(tree, dict):
        return {key: as_json(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [as_json(value) for value in tree]
    return tree if tree is None or isinstance(tree, bool | int | float | str) else told(tree)


def references(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, reference) of every reference in a tree, in its order: ("model.reference", "trainers.models:cnn")."""
    if isinstance(tree, list):
        for at, value in enumerate(tree):
            yield from references(value, f"{path}{at}.")
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "reference" and value is not None:
                yield f"{path}{key}", value
            elif key != "params":
                yield from references(value, f"{path}{key}.")


def unwritten(tree: Any) -> list[str]:
    """The parts of a tree, by their dotted keys, that are objects without a name: ["loss", "data.transforms.image.0"]."""
    found = references(tree)
    return [key.removesuffix(".reference") for key, value in found if not isinstance(value, str) or is_told(value)]


def merged(tree: Any, over: Any) -> Any:
    """`over` put into `tree`: dicts key by key, but those in WHOLE and anything else replaced."""
    if not isinstance(over, Mapping):
        return over
    if not isinstance(tree, dict):
        return dict(over)
    return {**tree, **{key: value if key in WHOLE else merged(tree.get(key), value) for key, value in over.items()}}


def with_dotted(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the values of dotted keys put in as by `merged`, later ones over earlier ones."""
    for key, value in values.items():
        tree = _put(tree, key.split("."), value)
    return tree


def _put(tree: Any, parts: list[str], value: Any) -> dict[str, Any]:
    if isinstance(tree, str):
        tree = {"reference": tree}
    node = tree if isinstance(tree, dict) else {}
    if len(parts) == 1:
        return cast(dict[str, Any], merged(node, {parts[0]: value}))
    return {**node, parts[0]: _put(node.get(parts[0]), parts[1:], value)}


def first_difference(stored: Mapping[str, Any], asked: Mapping[str, Any], path: str = "") -> str:
    """The first key whose values differ, told as "epochs is 5 in the checkpoint and 10 here"; "" when all agree."""
    for key in sorted({*stored, *asked}):
        left, right = stored.get(key), asked.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found = first_difference(left, right, f"{path}{key}.")
            if found:
                return found
        elif left != right:
            return f"{path}{key} is {left!r} in the checkpoint and {right!r} here"
    return ""


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tree of a TOML file. Raises SourceError (no file, too large), BadInput (not TOML), with the path."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(TOML_BYTES_MAX + 1)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", str(path)) from None
    if len(data) > TOML_BYTES_MAX:
        raise SourceError(f"{path} has more than {TOML_BYTES_MAX} bytes: it is no configuration", str(path))
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from None


def _value(hint: Any, value: Any, path: str) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return build(cast(type[Any], hint), value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _one_of_types(arguments, value, path)
    if origin is typing.Literal:
        if value not in arguments:
            names = [str(name) for name in arguments]
            raise BadInput(f"{path} is {value!r}; it must be one of {', '.join(names)}{nearest(str(value), names)}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise BadInput(f"{path} must be an object with keys, not {value!r}")
        return {str(key): _value(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise BadInput(f"{path} must be of type {hint.__name__}, not {value!r}")
    return value


def _one_of_types(hints: tuple[Any, ...], value: Any, path: str) -> Any:
    """`X | None`, or `int | Literal[…]`: a type takes what is of it, and the last one says what is wrong with the rest."""
    if Any in hints:
        return value
    if value is None and type(None) in hints:
        return None
    kinds = [hint for hint in hints if hint is not type(None)]
    for hint in kinds[:-1]:
        if isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
            return value
    return _value(kinds[-1], value, path)


def _tuple(hints: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise BadInput(f"{path} must be a list, not {value!r}")
    if hints[-1] is Ellipsis:
        return tuple(_value(hints[0], item, f"{path}.{at}") for at, item in enumerate(value))
    if len(value) != len(hints):
        raise BadInput(f"{path} must be a list of {len(hints)}, not {value!r}")
    return tuple(_value(hint, item, f"{path}.{at}") for at, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _unknown(path: str, key: str, names: list[str]) -> BadInput:
    hint = nearest(key, names) or f"; known keys are {', '.join(sorted(names))}"
    return BadInput(f"the train config has no key {path!r}{hint}")
