"""A pickle as data: what it says is read, nothing of it is done. No class is looked up, no function is called, no module is imported.

    parse(b"...")  ->  values that JSON has, bytes, tuples, sets, and for everything else

    Name("torch.distributed.checkpoint.metadata", "Metadata")      a global that the pickle names
    Made(name, arguments, state)                                   what it would have called, with what, and what it would have set

torch.distributed.checkpoint writes its metadata as a pickle of a few plain classes, and torch's own restricted unpickler reads no pickle
of protocol 4. Opcodes: CPython's Lib/pickletools.py, whose parser is used (it reads arguments and executes nothing).
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from leptonstore.errors import FormatDamaged

PICKLE_BYTES_MAX = 256 << 20  # of one that is read: some hundred bytes for each piece of each tensor
_MARK = object()


class Name(NamedTuple):
    """A global: "module" and the dotted name in it."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Made:
    """An object that the pickle describes. items: what it would have been given one by one (of lists and dicts that are not plain)."""

    def __init__(self, name: Any, arguments: tuple[Any, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.values: list[Any] = []

    def attributes(self, what: str) -> dict[str, Any]:
        """Of an object of a plain class. Raises FormatDamaged."""
        state = self.state[0] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        if not isinstance(state, dict):
            raise FormatDamaged(f"{what} is not described by attributes")
        return state


def parse(data: bytes, what: str) -> Any:
    """The value that `data` describes. Raises FormatDamaged for what is no pickle, or uses what no plain data needs."""
    if len(data) > PICKLE_BYTES_MAX:
        raise FormatDamaged(f"{what} has {len(data)} bytes, over the limit of {PICKLE_BYTES_MAX}")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.result()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatDamaged(f"{what} is damaged: {error}") from None
    raise FormatDamaged(f"{what} is damaged: it does not end")


class _Machine:
    """The stack machine of pickle, over descriptions."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _MEMO_PUT:
            self.memo[argument] = self.stack[-1]
        elif name in _MEMO_GET:
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            method = _METHODS.get(name)
            if method is None:
                raise ValueError(f"it uses the opcode {name}, which plain data does not need")
            method(self, argument)

    def result(self) -> Any:
        value = self.stack.pop()
        if value is _MARK or self.stack:
            raise ValueError("it ends in the middle of something")
        return value

    def to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            if at == 0:
                raise ValueError("a mark is missing")
            at -= 1
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        found = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(found)

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        (target.values if isinstance(target, Made) else target).extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Made) else target
        items.update(zip(values[::2], values[1::2], strict=True))

    def named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(module, name))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Name(str(module), str(name)))

    def made(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Made(function, tuple(arguments)))

    def made_with_keywords(self, _: Any) -> None:
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        made = Made(function, tuple(arguments))
        made.items.update(keywords)
        self.stack.append(made)

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Made):
            raise ValueError("a state is given to what has none")
        target.state = state

    def pop_two(self) -> list[Any]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]


_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_PUSHED = frozenset((*_NUMBERS, *_TEXTS, "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"))
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_MEMO_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_MEMO_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_METHODS: dict[str, Callable[[_Machine, Any], None]] = {
    "MEMOIZE": _Machine.memoize,
    "POP": lambda machine, _: machine.stack.__delitem__(-1),
    "POP_MARK": lambda machine, _: machine.to_mark().clear(),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.stack.append(machine.to_mark()),
    "DICT": lambda machine, _: machine.stack.append(dict(zip(*[iter(machine.to_mark())] * 2, strict=True))),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_two()),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "ADDITEMS": lambda machine, _: (lambda values: machine.stack[-1].update(values))(machine.to_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(frozenset(machine.to_mark())),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.made,
    "NEWOBJ": _Machine.made,
    "NEWOBJ_EX": _Machine.made_with_keywords,
    "BUILD": _Machine.build,
}
