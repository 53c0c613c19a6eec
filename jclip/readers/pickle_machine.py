"""An interpreter of pickle opcodes that builds values and containers, keeps names as names and calls nothing.

Python's unpickler lets a file call what a lookup table returns, write into new objects, and request memory by a
number. Here a name in the file is a `Name`; a `Meaning` decides what calling or filling it means, and returns objects
of our own. Work is bounded: a limit of instructions, and no value larger than the bytes of the file.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from jclip.errors import CheckpointError
from jclip.readers.held_file import shown
from jclip.readers.pickle_stream import Malformed, Stream

MOST_OPCODES = 1 << 19  # a checkpoint with its optimiser's state takes 100,000
_MOST_DIGITS = 1000  # of an integer in text
_MOST_INTEGER = 1024  # bytes of an integer
_MOST_NAME = 1000  # characters of a module's or function's name
_STOP = ord(".")


@dataclass(frozen=True)
class Name:
    """A class or function that the file names. Never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


class Table(dict):
    """A dict of the file. Keys other than text are dropped: they can't be part of a tensor's name."""

    __slots__ = ()

    def put(self, key: Any, value: Any) -> None:
        """Add one item."""
        if type(key) is str:
            self[key] = value


class Inert(Table):
    """A placeholder for an object of a class that is not imported: keeps its attributes, does nothing."""

    __slots__ = ()


class Meaning(Protocol):
    """The meaning of names in a file. Every method raises `CheckpointError` for what is not allowed."""

    def call(self, name: Name, arguments: tuple) -> Any:
        """Return the placeholder for the result of a call."""
        ...

    def lay_out(self, name: Name, arguments: tuple) -> Any:
        """Return the placeholder for a new, uninitialised object of a class."""
        ...

    def fill(self, made: Any, state: Any) -> None:
        """Set the state of a placeholder."""
        ...

    def load(self, identity: Any) -> Any:
        """Return the object for a persistent id."""
        ...


class Budget:
    """Instructions left, over all pickles of a file."""

    def __init__(self, most: int = MOST_OPCODES):
        self.most = self.left = most


def run_pickle(
    stream: Stream, place: str, meaning: Meaning, budget: Budget | None = None, kind: str = "weight file"
) -> Any:
    """Return the value of the next pickle. Raises `CheckpointError` naming `place` and the wanted kind of file for a
    broken, oversized or unsafe one."""
    try:
        return _Machine(stream, meaning, budget or Budget()).run()
    except (Malformed, UnicodeError, struct.error) as e:
        raise CheckpointError(f"{place} is not a readable pickle ({shown(e)}): damaged, or not a {kind}") from e


class _Machine:
    def __init__(self, stream: Stream, meaning: Meaning, budget: Budget):
        self.stream, self.meaning, self.budget = stream, meaning, budget
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        byte, budget, steps = self.stream.byte, self.budget, _STEPS_BY_BYTE
        while True:
            if budget.left <= 0:
                raise Malformed(f"more than {budget.most:,} instructions")
            budget.left -= 1
            opcode = byte()
            if opcode == _STOP:
                return self.pop()
            step = steps.get(opcode)
            if step is None:
                raise Malformed(f"instruction {opcode:#04x} is not one that weights need")
            step(self)

    def pop(self) -> Any:
        if not self.stack:
            raise Malformed("a value is needed, the stack is empty")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise Malformed("a value is needed, the stack is empty")
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        if not self.below:
            raise Malformed("a mark is needed, the stack has none")
        items, self.stack = self.stack, self.below.pop()
        return items

    def count(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.stream.take(size), "little", signed=signed)

    def text(self, size: int) -> str:
        return self.stream.take(size).decode("utf-8", "surrogatepass")

    def name(self, module: Any, name: Any) -> Name:
        if type(module) is not str or type(name) is not str or max(len(module), len(name)) > _MOST_NAME:
            raise Malformed("a name that is not a short text")
        return Name(module, name)

    def name_in_lines(self) -> Name:
        module, name = self.stream.line(_MOST_NAME), self.stream.line(_MOST_NAME)
        return self.name(module.decode("utf-8"), name.decode("utf-8"))

    def call(self, name: Any, arguments: Any, answer: Callable[[Name, tuple], Any]) -> None:
        if type(name) is not Name or type(arguments) is not tuple:
            raise Malformed("a call of something that is not a name")
        self.push(answer(name, arguments))

    # steps that need more than a line

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_one(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def whole_number(self, size: int) -> None:
        if size > _MOST_INTEGER:
            raise Malformed(f"an integer of {size} bytes")
        self.push(self.count(size, signed=True))

    def digits(self) -> None:
        """`I…\\n` and `L…L\\n` of protocol 0; 00 and 01 are False and True."""
        line = self.stream.line(_MOST_DIGITS)
        if line in (b"00", b"01"):
            return self.push(line == b"01")
        line = line.removesuffix(b"L")
        if not line.removeprefix(b"-").isdigit():
            raise Malformed("an invalid integer")
        self.push(int(line))

    def floating(self) -> None:
        line = self.stream.line(_MOST_DIGITS)
        try:
            self.push(float(line))
        except ValueError as e:
            raise Malformed("an invalid number") from e

    def quoted(self) -> None:
        """`S'…'\\n` of protocol 0: text of Python 2, whose bytes are taken as Latin-1."""
        line = self.stream.line(self.stream.left).strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise Malformed("a text without its quotation marks")
        try:
            self.push(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))
        except ValueError as e:
            raise Malformed("a text with a broken escape") from e

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push(self.name(module, name))

    def reduce(self) -> None:
        arguments, name = self.pop(), self.pop()
        self.call(name, arguments, self.meaning.call)

    def new_object(self) -> None:
        arguments, name = self.pop(), self.pop()
        self.call(name, arguments, self.meaning.lay_out)

    def new_object_with_keywords(self) -> None:
        self.pop()
        self.new_object()

    def instance(self) -> None:
        name = self.name_in_lines()
        self.call(name, tuple(self.since_mark()), self.meaning.call)

    def object(self) -> None:
        items = self.since_mark()
        self.call(items[0] if items else None, tuple(items[1:]), self.meaning.call)

    def build(self) -> None:
        state = self.pop()
        self.meaning.fill(self.top(), state)

    def put_items(self, items: list[Any]) -> None:
        table = self.top()
        if not isinstance(table, Table) or len(items) % 2:
            raise Malformed("items for something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            table.put(key, value)

    def append(self, items: list[Any]) -> None:
        if type(self.top()) is list:
            self.top().extend(items)
        elif not isinstance(self.top(), Inert):
            raise Malformed("items for something that is not a list")

    def add(self) -> None:
        self.append(self.since_mark())

    def pair(self) -> None:
        value, key = self.pop(), self.pop()
        self.put_items([key, value])

    def table(self) -> None:
        items = self.since_mark()
        self.push(Table())
        self.put_items(items)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise Malformed("a value is needed, the stack is empty")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items)

    def inert(self) -> None:
        self.since_mark()
        self.push(Inert())

    def frame(self) -> None:
        if self.count(8) > self.stream.left:
            raise Malformed("a frame that is longer than the file")

    def recall(self, key: int) -> None:
        if key not in self.memo:
            raise Malformed("a memo entry that was never stored")
        self.push(self.memo[key])

    def number_in_line(self) -> int:
        line = self.stream.line(20)
        if not line.isdigit():
            raise Malformed("an invalid memo index")
        return int(line)

    def keep(self, key: int) -> None:
        self.memo[key] = self.top()


def _bytes(size: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.stream.part(m.count(size)))


def _text(size: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.text(m.count(size)))


def _latin(size: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.stream.take(m.count(size)).decode("latin-1"))


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m.push(value)


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.count(1),  # the protocol's number: all of them are understood
    b"\x95": _Machine.frame,
    b"(": _Machine.mark,
    b"0": _Machine.pop_one,
    b"1": lambda m: m.since_mark() and None,
    b"2": lambda m: m.push(m.top()),
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"I": _Machine.digits,
    b"L": _Machine.digits,
    b"J": lambda m: m.push(m.count(4, signed=True)),
    b"K": lambda m: m.push(m.count(1)),
    b"M": lambda m: m.push(m.count(2)),
    b"\x8a": lambda m: m.whole_number(m.count(1)),
    b"\x8b": lambda m: m.whole_number(m.count(4)),
    b"F": _Machine.floating,
    b"G": lambda m: m.push(struct.unpack(">d", m.stream.take(8))[0]),
    b"S": _Machine.quoted,
    b"T": _latin(4),
    b"U": _latin(1),
    b"V": lambda m: m.push(m.stream.line(m.stream.left).decode("raw-unicode-escape")),
    b"X": _text(4),
    b"\x8c": _text(1),
    b"\x8d": _text(8),
    b"B": _bytes(4),
    b"C": _bytes(1),
    b"\x8e": _bytes(8),
    b"\x96": _bytes(8),
    b")": _constant(()),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.since_mark()),
    b"a": lambda m: m.append([m.pop()]),
    b"e": _Machine.add,
    b"}": lambda m: m.push(Table()),
    b"d": _Machine.table,
    b"s": _Machine.pair,
    b"u": lambda m: m.put_items(m.since_mark()),
    b"\x8f": lambda m: m.push(Inert()),
    b"\x90": _Machine.add,
    b"\x91": _Machine.inert,
    b"c": lambda m: m.push(m.name_in_lines()),
    b"\x93": _Machine.stack_global,
    b"R": _Machine.reduce,
    b"\x81": _Machine.new_object,
    b"\x92": _Machine.new_object_with_keywords,
    b"i": _Machine.instance,
    b"o": _Machine.object,
    b"b": _Machine.build,
    b"Q": lambda m: m.push(m.meaning.load(m.pop())),
    b"p": lambda m: m.keep(m.number_in_line()),
    b"q": lambda m: m.keep(m.count(1)),
    b"r": lambda m: m.keep(m.count(4)),
    b"\x94": lambda m: m.keep(len(m.memo)),
    b"g": lambda m: m.recall(m.number_in_line()),
    b"h": lambda m: m.recall(m.count(1)),
    b"j": lambda m: m.recall(m.count(4)),
}
_STEPS_BY_BYTE = {opcode[0]: step for opcode, step in _STEPS.items()}
