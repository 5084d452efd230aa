"""The part of the language of pickles that `torch.save` writes, understood here and not run.

A pickle is a program of a stack machine: opcodes push values, gather them in containers and store them under numbers.
Two opcodes can run anything at all, REDUCE and BUILD; here they hand a name and values to `Meaning`, which makes plain
data of them. Opcodes that are not in the tables below, with their letters as in the module pickletools, are refused.

Bounds, all of them far above what checkpoints need:

    MAX_BYTES         of the pickle
    MAX_OPCODES       run; a tensor takes about 40
    MAX_DIGIT_BYTES   of an integer; MAX_LINE of a name

Keys of dictionaries are texts and plain numbers, so that nothing nested is ever hashed or compared.
"""

import struct
from typing import Any, Protocol, runtime_checkable

MAX_BYTES = 32 * 2**20
MAX_OPCODES = 1_000_000
MAX_DIGIT_BYTES = 32
MAX_LINE = 1_000

# What is pushed: values; numbers; texts and bytes by the form of their length, and their encoding.
_VALUES = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_EMPTY: dict[int, type] = {ord("]"): list, ord("}"): dict}
_NUMBERS = {ord("K"): "<B", ord("M"): "<H", ord("J"): "<i", ord("G"): ">d"}
_TEXTS = {
    ord("X"): ("<I", "utf-8"), 0x8C: ("<B", "utf-8"), ord("T"): ("<I", "latin-1"), ord("U"): ("<B", "latin-1"),
    ord("B"): ("<I", ""), ord("C"): ("<B", ""), 0x8A: ("<B", "integer"),
}  # fmt: skip
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_SKIPPED = {0x80: 1, 0x95: 8}  # PROTO, FRAME
_PUT, _GET = {ord("q"): "<B", ord("r"): "<I"}, {ord("h"): "<B", ord("j"): "<I"}
_OTHERS = frozenset(b"(tu.aescRbQ\x93\x94\x81")
_MARK = object()


class PickleError(ValueError):
    """A pickle that is damaged, goes beyond the bounds, or needs more than `torch.save` does."""


@runtime_checkable
class Meaning(Protocol):
    """What the names in a pickle stand for."""

    def named(self, module: str, name: str) -> object:
        """Return what stands for a function or class of that name."""
        ...

    def called(self, function: object, arguments: tuple[object, ...]) -> object:
        """Return what calling it would make."""
        ...

    def with_state(self, value: object, state: object) -> None:
        """Give a value its state."""
        ...

    def stored(self, reference: object) -> object:
        """Return what lies outside of the pickle under that reference."""
        ...


def load(code: bytes, meaning: Meaning) -> object:
    """Return the value that a pickle describes.

    Raises:
        PickleError: as the class says; or whatever `meaning` raises.
    """
    if len(code) > MAX_BYTES:
        raise PickleError(f"it has over {MAX_BYTES // 2**20} MiB, the most that is read")
    try:
        return _run(code, meaning)
    except (struct.error, IndexError, TypeError, UnicodeDecodeError) as error:
        raise PickleError(f"it is damaged: {error}") from error


def _run(code: bytes, meaning: Meaning) -> object:
    # One function, since a checkpoint runs hundreds of thousands of opcodes.
    stack: list[object] = []
    memo: dict[int, object] = {}
    at = 0

    def number(form: str) -> Any:
        nonlocal at
        at += struct.calcsize(form)
        return struct.unpack_from(form, code, at - struct.calcsize(form))[0]

    def piece(length: int) -> bytes:
        nonlocal at
        if length > len(code) - at:
            raise PickleError("it ends too early")
        at += length
        return code[at - length : at]

    for _ in range(MAX_OPCODES):
        opcode = code[at]
        at += 1
        if opcode in _VALUES:
            stack.append(_VALUES[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode in _NUMBERS:
            stack.append(number(_NUMBERS[opcode]))
        elif opcode in _TEXTS:
            form, encoding = _TEXTS[opcode]
            stack.append(_decoded(piece(number(form)), encoding))
        elif opcode in _TUPLES:
            stack[-_TUPLES[opcode] :] = [tuple(_last(stack, _TUPLES[opcode]))]
        elif opcode in _PUT:
            memo[number(_PUT[opcode])] = stack[-1]
        elif opcode in _GET:
            stack.append(_known(memo, number(_GET[opcode])))
        elif opcode in _SKIPPED:
            piece(_SKIPPED[opcode])
        elif opcode not in _OTHERS:
            raise PickleError(f"the opcode {opcode:#x} is none of those that torch.save writes")
        else:
            match chr(opcode):
                case "(":
                    stack.append(_MARK)
                case "\x94":  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                case "t":
                    stack.append(tuple(_since_mark(stack)))
                case "a":
                    value = stack.pop()
                    _extend(stack[-1], [value])
                case "e":
                    values = _since_mark(stack)
                    _extend(stack[-1], values)
                case "s":
                    value, key = stack.pop(), stack.pop()
                    _set(stack[-1], [key, value])
                case "u":
                    values = _since_mark(stack)
                    _set(stack[-1], values)
                case "c":  # GLOBAL
                    stack.append(meaning.named(*(_line(piece(_to_newline(code, at))) for _ in range(2))))
                case "\x93":  # STACK_GLOBAL
                    name, module = stack.pop(), stack.pop()
                    if not (isinstance(name, str) and isinstance(module, str)):
                        raise PickleError("a name is no text")
                    stack.append(meaning.named(module, name))
                case "R" | "\x81":  # REDUCE, NEWOBJ
                    arguments, function = stack.pop(), stack.pop()
                    if type(arguments) is not tuple:
                        raise PickleError("arguments are no tuple")
                    stack.append(meaning.called(function, arguments))
                case "b":  # BUILD
                    state = stack.pop()
                    meaning.with_state(stack[-1], state)
                case "Q":  # BINPERSID
                    stack.append(meaning.stored(stack.pop()))
                case _:
                    return stack.pop()
    raise PickleError(f"it has over {MAX_OPCODES:,} opcodes, the most that are run")


def _decoded(content: bytes, encoding: str) -> str | bytes | int:
    if encoding != "integer":
        return content.decode(encoding) if encoding else content
    if len(content) > MAX_DIGIT_BYTES:
        raise PickleError(f"an integer has {len(content)} bytes; at most {MAX_DIGIT_BYTES} are read")
    return int.from_bytes(content, "little", signed=True)


def _to_newline(code: bytes, at: int) -> int:
    end = code.find(b"\n", at, at + MAX_LINE)
    if end < 0:
        raise PickleError(f"a name has over {MAX_LINE} letters, or no end")
    return end + 1 - at


def _line(content: bytes) -> str:
    return content[:-1].decode()


def _last(stack: list[object], count: int) -> list[object]:
    if len(stack) < count:
        raise PickleError("its stack is empty")
    return stack[-count:]


def _since_mark(stack: list[object]) -> list[object]:
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _known(memo: dict[int, object], number: int) -> object:
    if number not in memo:
        raise PickleError("it refers to what it has not stored")
    return memo[number]


def _extend(target: object, values: list[object]) -> None:
    if type(target) is not list:
        raise PickleError("items are put where no list is")
    target.extend(values)


def _set(target: object, pairs: list[object]) -> None:
    if type(target) is not dict or len(pairs) % 2:
        raise PickleError("items are put where no dictionary is")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, str | int | float | None):
            raise PickleError(f"a dictionary has a key of type {type(key).__name__}")
        target[key] = value
