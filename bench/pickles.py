"""Pickles read without running anything in them: an interpreter of the instructions that plain data need.

Python's own unpickler imports what a file names and calls it with what the file says.  Here a name stays a name: the
reader is given the names that may stand in a file, each with a builder of ours that takes the arguments instead, and
anything else is refused by its name.  Nothing takes more memory than the file: texts and bytes are looked at where they
lie, and instructions are counted.  What is read may still nest itself, or the same thing so often that a few thousand
instructions stand for more than any memory could hold: who walks through it counts.
"""

import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UsageError

MOST = 500_000  # instructions; the largest network of EDM and EDM2 takes fewer than 100,000

Builders = Mapping[str, Callable[..., object]]


class Stream:
    """Bytes to read in turn, for pickletools; what is long comes as a view and is not copied."""

    def __init__(self, data: Any) -> None:
        self.rest = memoryview(data)

    def read(self, count: int) -> bytes | memoryview:
        """So many bytes, or all that are left."""
        piece, self.rest = self.rest[:count], self.rest[count:]
        return piece if count > 255 else bytes(piece)

    def readline(self) -> bytes:
        """Up to the next end of a line, as names are written, which are short."""
        line = bytes(self.rest[:1024])
        return bytes(self.read(line.find(b"\n") + 1 or len(line)))


class Budget:
    """How many instructions may still be read."""

    def __init__(self, left: int = MOST) -> None:
        self.left = left

    def spend(self) -> None:
        """Raises UsageError when none is left."""
        self.left -= 1
        if self.left < 0:
            raise UsageError(f"it has more than {MOST:,} instructions")


@dataclass(frozen=True, eq=False)
class Name:
    """A name in a pickle, with what is called in place of the thing of that name."""

    name: str
    build: Callable[..., object]


class Stateful(ABC):
    """What stands for an object whose state a pickle sets after it was made."""

    @abstractmethod
    def set_state(self, state: Any) -> None:
        """Take over the state; raises UsageError."""


def read_pickle(data: Any, builders: Builders, budget: Budget | None = None) -> Any:
    """What a whole pickle in these bytes holds; raises UsageError with what was refused, and nothing else."""
    stream = Stream(data)
    found = read_next(stream, builders, budget or Budget())
    if stream.rest:
        raise UsageError(f"it goes on for {len(stream.rest):,} bytes after its end")
    return found


def read_next(stream: Stream, builders: Builders, budget: Budget, identified: bool = False) -> Any:
    """The pickle that comes next; where things are `identified`, their persistent ids are taken for them."""
    reader = _Reader(builders, identified)
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            budget.spend()
            reader.follow(instruction.name, argument)
        (found,) = reader.stack
        if reader.marked:
            raise ValueError("a mark is left")
    except UsageError:
        raise
    except Exception as error:  # what is no pickle fails in any way
        raise UsageError(f"it is no pickle, or not all of one: {shown(str(error))}") from error
    return found


def shown(text: str) -> str:
    """A text from a file, in one line that is not long and moves no cursor."""
    plain = text if text.isascii() and text.isprintable() else ascii(text[:80])
    return plain if len(plain) <= 80 else f"{plain[:79]}…"


VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
ARGUMENTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CALLS = {"REDUCE", "NEWOBJ"}  # an object made by its class is made by a builder too
GETS = {"BINGET", "LONG_BINGET"}
PUTS = {"BINPUT", "LONG_BINPUT"}


class _Reader:
    """The stack and memo of a pickle that is being read.  A mark puts the stack aside and starts another."""

    def __init__(self, builders: Builders, identified: bool) -> None:
        self.builders, self.identified = builders, identified
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: list[Any] = []

    def follow(self, instruction: str, argument: Any) -> None:
        if instruction in ARGUMENTS:
            self.stack.append(argument)
        elif instruction in VALUES:
            self.stack.append(VALUES[instruction])
        elif instruction in EMPTY:
            self.stack.append(EMPTY[instruction]())
        elif instruction in TUPLES:
            self._tuple(TUPLES[instruction])
        elif instruction in GETS:
            self.stack.append(self.memo[argument])
        elif instruction in PUTS:
            self._put(argument)
        elif instruction in CALLS:
            self._call()
        else:
            self._act(instruction, argument)

    def _act(self, instruction: str, argument: Any) -> None:
        match instruction:
            case "PROTO" | "FRAME" | "STOP":  # of no meaning here: genops stops by itself
                pass
            case "MEMOIZE":
                self.memo.append(self.stack[-1])
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self._since_mark()
                self.stack.append(tuple(items))
            case "APPEND" | "APPENDS":
                items = self._items(instruction)
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._items(instruction, 2)
                keys, values = items[::2], items[1::2]
                self._top(dict).update(zip(_texts(keys), values, strict=True))
            case "ADDITEMS":
                items = self._since_mark()
                self._top(set).update(_texts(items))
            case "GLOBAL" | "INST":
                self._name(".".join(argument.split(" ")))
            case "STACK_GLOBAL":
                name, module = self.stack.pop(), self.stack.pop()
                self._name(".".join(_texts([module, name])))
            case "BUILD":
                state = self.stack.pop()
                target = self._top(Stateful)
                _built(f"sets the state of {called(target)}", target.set_state, state)
            case "BINPERSID" if self.identified:
                pass  # the id is on the stack, and stays there
            case _:
                raise UsageError(f"it holds the instruction {instruction}, and data need nothing of the kind")

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _items(self, instruction: str, count: int = 1) -> list[Any]:
        if instruction.endswith("S"):
            return self._since_mark()
        items, self.stack[-count:] = self.stack[-count:], []
        return items

    def _tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _top(self, kind: type) -> Any:
        """The object on top of the stack, if it is of this very kind: what was made for reading has no methods."""
        if not isinstance(self.stack[-1], kind):
            raise UsageError(f"it fills {called(self.stack[-1])} as if it were a {kind.__name__.lower()}")
        return self.stack[-1]

    def _put(self, index: int) -> None:
        if index != len(self.memo):  # picklers count; a reader that believed any number would make room for it
            raise UsageError(f"it remembers a thing as number {index:,} where number {len(self.memo):,} is next")
        self.memo.append(self.stack[-1])

    def _name(self, name: str) -> None:
        if name not in self.builders:
            raise UsageError(f"it tries to import {shown(name)}")
        self.stack.append(Name(name, self.builders[name]))

    def _call(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise UsageError(f"it calls {called(name)} with {called(arguments)}")
        self.stack.append(_built(f"calls {name.name}", name.build, *arguments))


def _built(doing: str, build: Callable[..., object], *arguments: object) -> object:
    """What a builder of ours makes of a file's arguments; raises UsageError, which says what the file is doing."""
    try:
        return build(*arguments)
    except Exception as error:  # the arguments may be anything
        why = str(error) if isinstance(error, UsageError) else "it gives what this does not take"
        raise UsageError(f"it {doing}: {why}") from error


def _texts(keys: list[Any]) -> list[str]:
    """The keys if all are texts; the hash of nested tuples would take exponential time."""
    for key in keys:
        if not isinstance(key, str):
            raise UsageError(f"it uses {called(key)} as a name or key, which texts alone are")
    return keys


def called(thing: Any) -> str:
    """What a thing from a file is, for messages: "a dict", "an array", and of a name the name."""
    if thing is None or isinstance(thing, Name):
        return thing.name if thing else "None"
    kind = type(thing).__name__.lstrip("_").lower()
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def empty_dict() -> dict[str, Any]:
    """Stands for a kind of dict: one that is filled after it was made."""
    return {}


class _Dtype(Stateful):
    """Stands for a pickled numpy.dtype without fields."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or code[:1] not in "fiucbUSO" or not code[1:].isdecimal():
            raise UsageError("it is none of numbers, text or objects")
        self.numpy = np.dtype(code)

    def set_state(self, state: Any) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class Array(Stateful):
    """Stands for a pickled numpy.ndarray; `array` is a view of the pickle's bytes."""

    array: NDArray[Any] = np.empty(0)

    def set_state(self, state: Any) -> None:
        _, shape, dtype, by_columns, data = state
        self.array = _array(data, dtype, shape, "F" if by_columns else "C").array


def _array(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any = "C") -> Array:
    if dtype.numpy.hasobject:
        raise UsageError("it holds an array of objects, whose bytes would be pointers")
    found = Array()
    found.array = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
    return found


NUMPY: Builders = {
    "numpy.ndarray": Array,
    "numpy.dtype": _Dtype,
    **{
        f"numpy.{core}.{name}": build
        for core in ("core", "_core")  # as numpy 1 and numpy 2 call it
        for name, build in {
            "multiarray._reconstruct": lambda kind, shape, code: Array(),
            "multiarray.scalar": lambda dtype, data: _array(data, dtype, ()),
            "numeric._frombuffer": _array,
        }.items()
    },
}
