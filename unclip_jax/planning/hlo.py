"""Reading a compiled program's text: what it sends between chips, what it moves through memory, how often.

The text is XLA's own (`compiled.as_text()`), after partitioning and scheduling, for one device. A loop's body stands
there once, so everything is counted

(1) times(computation) = sum over its callers of times(caller) * trips        trips = 1, or those of a loop

and a collective that the compiler has cut into several asynchronous pieces, which share a channel, counts once.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "bf16": 2,
    "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
# Names for what lies elsewhere: these read and write nothing.
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its name, the text of its type, its operation, and all that follows."""

    name: str
    type: str
    operation: str
    rest: str

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of what it reads."""
        depth = 1
        for end, character in enumerate(self.rest):
            depth += (character in "({[") - (character in ")}]")
            if depth == 0:
                return _OPERAND.findall(self.rest[:end])
        return _OPERAND.findall(self.rest)

    @functools.cached_property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        return [name for group in _CALLED.findall(self.rest) for name in _OPERAND.findall(group)]


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between chips of a group in one step: `times` times, `bytes_each` of the whole array on each chip."""

    kind: str
    shape: str
    bytes_each: int
    group: int
    times: int
    source: str
    """The operation of the model that caused it."""

    @property
    def wire_bytes(self) -> float:
        """Bytes that leave a chip, all times together, by the ring algorithms."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.bytes_each * self.times


class Program:
    """A compiled program, parsed."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                current = self.computations.setdefault(match[1], [])
                if line.startswith("ENTRY"):
                    self.entry = match[1]
            elif match := _INSTRUCTION.match(line):
                current.append(Instruction(*match.groups()))
        if not self.entry:
            raise ValueError("this is no text of a compiled program: it has no ENTRY")

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """Equation (1), for every computation that runs."""
        times: dict[str, int] = collections.defaultdict(int)
        # Callees stand before their callers, so from the end every caller is complete when it is met.
        order = list(self.computations)
        times[self.entry] = 1
        for name in reversed(order):
            for instruction in self.computations[name] if times[name] else ():
                trips = self._trips(instruction) if instruction.operation == "while" else 1
                for callee in instruction.called:
                    times[callee] += times[name] * trips
        return times

    def _trips(self, loop: Instruction) -> int:
        """Return how often a loop runs: the largest integer that its condition compares with."""
        if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
            return int(match[1])
        condition = re.search(r"condition=%([\w.\-]+)", loop.rest)
        bounds = [1]
        pending = [condition[1]] if condition else []
        while pending:
            for instruction in self.computations.get(pending.pop(), ()):
                pending += instruction.called
                if instruction.operation == "constant" and instruction.type.startswith("s32[]"):
                    bounds.append(int(instruction.rest.split(")")[0]))
        return max(bounds)

    @functools.cached_property
    def _rounds(self) -> dict[str, int]:
        """Trips of the loop whose body a computation is."""
        loops = (each for some in self.computations.values() for each in some if each.operation == "while")
        return {callee: self._trips(loop) for loop in loops for callee in loop.called}

    @functools.cached_property
    def fused(self) -> set[str]:
        """Computations that run inside one instruction, so that their values never reach memory."""
        names = set()
        for instructions in self.computations.values():
            for instruction in instructions:
                if instruction.operation not in ("while", "conditional", "call"):
                    names |= set(instruction.called)
        return names

    def collectives(self) -> list[Collective]:
        """Return every collective of the program, in the order of the text."""
        found: dict[str, Collective] = {}
        for computation, instructions in self.computations.items():
            for instruction in instructions:
                kind = instruction.operation.removesuffix("-start")
                if kind not in KINDS or not self.times[computation]:
                    continue
                if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                arrays = list(_arrays(instruction.type))
                if instruction.operation.endswith("-start"):
                    # What goes in, then what comes out.
                    arrays = arrays[len(arrays) // 2 :]
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                size = sum(size for size, *_ in arrays)
                if instruction.operation.startswith("reduce-scatter"):
                    size *= _group(instruction.rest)
                source = re.search(r'op_name="([^"]*)"', instruction.rest)
                found[channel[1] if channel else f"{computation}/{instruction.name}"] = Collective(
                    kind=kind,
                    shape=re.sub(r"\{[^}]*\}", "", instruction.type),
                    bytes_each=int(size),
                    group=_group(instruction.rest),
                    times=self.times[computation],
                    source=source[1] if source else "",
                )
        return list(found.values())

    def memory_bytes(self) -> float:
        """Return the bytes that the program reads from and writes to the chip's main memory, by every instruction
        alone.

        Of a stack with as many entries as its loop has rounds, each round is taken to touch one.
        """
        total = 0.0
        for computation, instructions in self.computations.items():
            if computation in self.fused or not self.times[computation]:
                continue
            types = {instruction.name: instruction.type for instruction in instructions}
            rounds, moved = self._rounds.get(computation, 1), 0.0
            for instruction in instructions:
                if instruction.operation in _FREE or instruction.operation.endswith("-start"):
                    continue
                touched = [instruction.type, *(types.get(name, "") for name in instruction.operands)]
                moved += sum(_in_memory(each, rounds) for each in touched)
            total += moved * self.times[computation]
        return total


def _arrays(text: str) -> Iterator[tuple[float, tuple[int, ...], str]]:
    """Return bytes, shape and layout of every array in a type."""
    for dtype, sizes, layout in _ARRAY.findall(text):
        if dtype in _BYTES:
            shape = tuple(int(size) for size in sizes.split(",") if size)
            yield float(_BYTES[dtype] * math.prod(shape)), shape, layout


def _in_memory(text: str, rounds: int) -> float:
    # S(1) is the chip's fast memory, and what is above 1 are registers and flags.
    sizes = (
        size / rounds if rounds > 1 and shape[:1] == (rounds,) else size
        for size, shape, layout in _arrays(text)
        if "S(" not in layout
    )
    return float(sum(sizes))


def _group(rest: str) -> int:
    """Return the chips of one replica group: listed, as [groups, size]<=[...], or as axes of a mesh."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^)]*\)[^ ]*\))? \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"source_target_pairs=", rest):
        return 2
    return 1
