"""Execute PTX on the CPU: all threads of many blocks at once, one numpy element each.

Threads that diverge form groups; the group that is furthest behind goes on, so that they meet again
where branches join. A group stops at a barrier until all threads of the block (of the warp, for
`bar.warp.sync`) have come to it. The order in which threads run between barriers is one of many;
that no other order would give other results is what `ptx_memory.Shared` checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.emulate.ptx_memory import Memory, Shared, Threads
from mlc.emulate.ptx_values import DTYPES, compute, result_type, source_types
from mlc.errors import RunError

if TYPE_CHECKING:
    from mlc.emulate.ptx_text import Entry, Instruction

Array = np.ndarray[Any, Any]
Step = Callable[[Any], None]
WARP = 32
_LANES = 1 << 15  # threads executed at once
_MAX_STEPS = 50_000_000  # executed instructions of one launch: a loop that never ends is one
_CLASSES = {"pred": "pred", "b16": "b16", "b32": "b32", "b64": "b64", "f32": "b32", "f64": "b64"}
_CONTROL = ("bra", "ret", "exit", "bar", "barrier")


def launch(
    entry: Entry,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    arguments: Sequence[int],
    memory: Memory,
) -> None:
    """Execute a kernel over its whole grid.

    Args:
        entry: the kernel.
        grid: blocks in x, y, z.
        block: threads of a block in x, y, z.
        arguments: a number for each parameter; for a pointer an address in `memory`.
        memory: global memory, which is changed.

    Raises:
        RunError: a thread accesses what is not there, threads race, a barrier is not reached by
            all, or the kernel uses an instruction that is not known here.
    """
    if len(arguments) != len(entry.params):
        raise RunError(f"{entry.name} takes {len(entry.params)} arguments, not {len(arguments)}")
    total, threads = int(np.prod(grid)), int(np.prod(block))
    at_once = max(1, _LANES // threads)
    for first in range(0, total, at_once):
        blocks = np.arange(first, min(first + at_once, total))
        try:
            _Machine(entry, grid, block, blocks, list(arguments), memory).run()
        except RunError as error:
            raise RunError(f"kernel {entry.name}: {error.message}", error.hint) from None


class _Machine:
    """Some blocks of a launch: registers and memory of their threads, and where those are."""

    def __init__(
        self, entry: Entry, grid: tuple[int, int, int], block: tuple[int, int, int],
        blocks: Array, arguments: list[int], memory: Memory,
    ):  # fmt: skip
        tables = [np.frombuffer(table, np.uint8) for table in entry.tables.values()]
        self.entry, self.memory = entry, Memory([*memory.buffers, *tables], memory.what)
        self.per_block = int(np.prod(block))
        self.lanes = len(blocks) * self.per_block
        self.slot = np.repeat(np.arange(len(blocks)), self.per_block)
        self.thread = np.tile(np.arange(self.per_block, dtype=np.int32), len(blocks))
        self.block_step = np.zeros(self.lanes, np.int32)
        self.warp_step = np.zeros(self.lanes, np.int32)
        self.special = {
            **_axes("%tid", self.thread, block), **_axes("%ctaid", np.repeat(blocks, self.per_block), grid),
            **{f"%ntid.{axis}": self._full(size) for axis, size in zip("xyz", block, strict=True)},
            **{f"%nctaid.{axis}": self._full(size) for axis, size in zip("xyz", grid, strict=True)},
        }  # fmt: skip
        self.params = dict(zip((name for name, _ in entry.params), arguments, strict=True))
        self.shared, self.local, self.symbols = self._arrays(len(blocks))
        first = len(memory.buffers)
        self.symbols |= {name: memory.address(first + k) for k, name in enumerate(entry.tables)}
        self.registers: dict[str, Array] = {}
        self.steps = [self._decode(instruction) for instruction in entry.code]

    def _full(self, value: int) -> Array:
        return np.full(self.lanes, value, np.uint32)

    def _arrays(self, blocks: int) -> tuple[Shared, Shared, dict[str, int]]:
        """Return shared and local memory, and the address of each array in them."""
        spaces = {}
        symbols: dict[str, int] = {}
        for space, count, cell in (("shared", blocks, self._cell()), ("local", self.lanes, 1)):
            arrays = {
                name: size for name, (kind, size) in self.entry.arrays.items() if kind == space
            }
            spaces[space] = Shared(list(arrays.values()), count, cell)
            symbols |= {name: spaces[space].address(k) for k, name in enumerate(arrays)}
        return spaces["shared"], spaces["local"], symbols

    def _cell(self) -> int:
        sizes = [
            DTYPES[code.words[-1]].itemsize
            for code in self.entry.code
            if code.words[0] in ("ld", "st") and "shared" in code.words
        ]
        return min([*sizes, 4])

    # How threads move through the code.

    def run(self) -> None:
        groups = {0: np.arange(self.lanes)}
        waiting: dict[int, Array] = {}
        executed = 0
        leaders = set(self.entry.labels.values())
        while groups or waiting:
            if not groups:
                self._release(waiting, groups)
            position = min(groups)
            group = groups.pop(position)
            while position < len(self.steps):
                code = self.entry.code[position]
                if code.words[0] in _CONTROL:
                    self._control(code, position, group, groups, waiting)
                    break
                self.steps[position](slice(None) if len(group) == self.lanes else group)
                position += 1
                executed += 1
                if position in leaders and groups:
                    _join(groups, position, group)
                    break
            if executed > _MAX_STEPS:
                raise RunError(f"it has not ended after {executed} instructions")

    def _control(
        self, code: Instruction, position: int, group: Array,
        groups: dict[int, Array], waiting: dict[int, Array],
    ) -> None:  # fmt: skip
        taken, rest = group, group[:0]
        if code.guard:
            condition = self._register(code.guard)[group] != code.negated
            taken, rest = group[condition], group[~condition]
        _join(groups, position + 1, rest)
        if code.words[0] == "bra":
            _join(groups, self.entry.labels[code.operands[0]], taken)
        elif code.words[0] in ("bar", "barrier"):
            _join(waiting, position, taken)

    def _release(self, waiting: dict[int, Array], groups: dict[int, Array]) -> None:
        """Let those threads go on whose barrier all have reached."""
        for position in list(waiting):
            group = waiting[position]
            warp = "warp" in self.entry.code[position].words
            team = self.slot * self.per_block + (self.thread // WARP if warp else 0)
            size = np.bincount(team, minlength=team.max() + 1)
            came = np.bincount(team[group], minlength=len(size))
            free = group[came[team[group]] == size[team[group]]]
            if len(free):
                if warp:
                    self.warp_step[free] += 1
                else:
                    self.block_step[free] += 1
                _join(groups, position + 1, free)
                stay = group[came[team[group]] != size[team[group]]]
                waiting.pop(position)
                _join(waiting, position, stay)
        if not groups:
            raise RunError("threads wait at a barrier that others of their block do not reach")

    # What an instruction does.

    def _decode(self, code: Instruction) -> Step:
        try:
            return self._step(code)
        except (KeyError, ValueError, IndexError):  # an unknown type, literal or operand
            raise self._unknown(code) from None

    def _step(self, code: Instruction) -> Step:
        words = code.words
        if words[0] in _CONTROL:
            return lambda _group: None
        if code.guard:
            raise self._unknown(code)
        if words[0] == "ld":
            return self._load(code)
        if words[0] == "st":
            return self._store(code)
        if words[0] == "mov" and "{" in "".join(code.operands):
            return self._pack(code)
        function = compute(words)
        if function is None:
            raise self._unknown(code)
        target, *operands = code.operands
        if words[0] == "cvta":
            types = ["u64"]
        elif words[0] == "mov" and operands[0] in self.special:
            types = ["u32"]
        else:
            types = source_types(words, len(operands))
        sources = [self._source(text, kind) for text, kind in zip(operands, types, strict=True)]
        dtype = DTYPES[result_type(words)]

        def step(group: Any) -> None:
            values = [source(group) for source in sources]
            result = function(*values)
            self._write(target, result.astype(dtype, copy=False), group)

        return step

    def _pack(self, code: Instruction) -> Step:
        """Join registers to a wider one, the lowest first, or take such a one apart (`mov`)."""
        kind, whole = code.words[-1], DTYPES[code.words[-1]]
        target, source = code.operands
        apart = target.startswith("{")
        parts = [part.strip() for part in (target if apart else source).strip("{}").split(",")]
        narrow = f"b{8 * whole.itemsize // len(parts)}"
        shifts = [np.array(k * int(narrow[1:]), whole) for k in range(len(parts))]
        if apart:
            joined = self._source(source, kind)

            def take(group: Any) -> None:
                value = joined(group)
                for part, shift in zip(parts, shifts, strict=True):
                    if part != "_":  # nobody wants it
                        self._write(part, (value >> shift).astype(DTYPES[narrow]), group)

            return take
        sources = [self._source(part, narrow) for part in parts]

        def join(group: Any) -> None:
            pieces = [
                read(group).astype(whole) << shift
                for read, shift in zip(sources, shifts, strict=True)
            ]
            self._write(target, np.bitwise_or.reduce(pieces), group)

        return join

    def _unknown(self, code: Instruction) -> RunError:
        return RunError(f"the simulator does not know the instruction `{code.text}`")

    def _source(self, text: str, kind: str) -> Callable[[Any], Array]:
        dtype = DTYPES[kind]
        if text in self.special:
            return lambda group: self.special[text][group]
        if text.startswith("%"):
            return lambda group: _as(self._register(text)[group], dtype)
        value = self.symbols[text] if text in self.symbols else _number(text, dtype)
        constant = np.broadcast_to(np.array(value, dtype), self.lanes)
        return lambda group: constant[group]

    def _register(self, name: str) -> Array:
        found = self.registers.get(name)
        if found is None:
            prefix = name.rstrip("0123456789")
            kind = self.entry.registers.get(name) or self.entry.registers.get(prefix, "b64")
            found = self.registers[name] = np.zeros(self.lanes, DTYPES[_CLASSES[kind]])
        return found

    def _write(self, name: str, value: Array, group: Any) -> None:
        register = self._register(name)
        if value.dtype.kind == "f":
            value = value.view(f"u{value.dtype.itemsize}")
        register[group] = value.astype(register.dtype, copy=False)

    def _address(self, text: str) -> tuple[Callable[[Any], Array], str]:
        base, _, offset = text.strip("[]").partition("+")
        source, step = self._source(base, "u64"), np.int64(int(offset or 0)).astype(np.uint64)
        return (lambda group: source(group) + step), base

    def _load(self, code: Instruction) -> Step:
        words, dtype = code.words, DTYPES[code.words[-1]]
        targets = code.operands[0].strip("{}").split(",")
        if "param" in words:
            given = np.array(self.params[code.operands[1].strip("[]")]).astype(dtype)
            value = np.broadcast_to(given, self.lanes)
            return lambda group: self._write(targets[0], value[group], group)
        address, _ = self._address(code.operands[1])
        read = self._reader(code)

        def step(group: Any) -> None:
            first = address(group)
            for k, target in enumerate(targets):
                value = read(first + np.uint64(k * dtype.itemsize), dtype, group)
                self._write(target.strip(), value, group)

        return step

    def _store(self, code: Instruction) -> Step:
        dtype = DTYPES[code.words[-1]]
        address, _ = self._address(code.operands[0])
        sources = [
            self._source(text.strip(), code.words[-1])
            for text in code.operands[1].strip("{}").split(",")
        ]

        def step(group: Any) -> None:
            first = address(group)
            for k, source in enumerate(sources):
                at, value = first + np.uint64(k * dtype.itemsize), source(group)
                if "shared" in code.words:
                    self.shared.store(at, value, self._who(group))
                elif "local" in code.words:
                    self.local.store(at, value, self._alone(group))
                else:
                    self.memory.store(at, value)

        if not {"shared", "local", "global"} & set(code.words):
            raise self._unknown(code)
        return step

    def _reader(self, code: Instruction) -> Callable[[Array, np.dtype[Any], Any], Array]:
        if "shared" in code.words:
            return lambda at, dtype, group: self.shared.load(at, dtype, self._who(group))
        if "local" in code.words:
            return lambda at, dtype, group: self.local.load(at, dtype, self._alone(group))
        if "global" in code.words:
            return lambda at, dtype, _group: self.memory.load(at, dtype)
        raise self._unknown(code)

    def _who(self, group: Any) -> Threads:
        steps = (self.block_step[group], self.warp_step[group])
        return Threads(self.thread[group], self.slot[group], steps)

    def _alone(self, group: Any) -> Threads:
        """Return the threads as the owners of their local memory."""
        steps = (self.block_step[group], self.warp_step[group])
        return Threads(self.thread[group], np.arange(self.lanes)[group], steps)


def _axes(name: str, number: Array, sizes: tuple[int, int, int]) -> dict[str, Array]:
    x, y, _ = sizes
    parts = (number % x, number // x % y, number // (x * y))
    return {
        f"{name}.{axis}": part.astype(np.uint32) for axis, part in zip("xyz", parts, strict=True)
    }


def _join(groups: dict[int, Array], position: int, group: Array) -> None:
    if len(group):
        known = groups.get(position)
        groups[position] = group if known is None else np.concatenate([known, group])


def _as(register: Array, dtype: np.dtype[Any]) -> Array:
    """Return what a register holds as a type; of a wider register the low bits."""
    if register.dtype == dtype:
        return register
    if register.dtype.itemsize != dtype.itemsize:
        register = register.astype(f"u{dtype.itemsize}")
    return register.view(dtype)


def _number(text: str, dtype: np.dtype[Any]) -> Any:
    """Return a literal: `0fBF800000` and `0d...` are the bits of a float."""
    for prefix, digits, kind in (("0f", 8, "f4"), ("0d", 16, "f8")):
        if text[:2].lower() == prefix and len(text) == 2 + digits:
            raw = np.frombuffer(bytes.fromhex(text[2:])[::-1], kind.replace("f", "u"))[0]
            return raw.view(kind) if dtype.kind == "f" else raw
    if dtype.kind == "b":
        return int(text) != 0
    return np.array(int(text, 0) & ((1 << 8 * dtype.itemsize) - 1), f"u{dtype.itemsize}").view(
        dtype
    )
