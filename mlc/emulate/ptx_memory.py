"""Memory of a simulated GPU, every access checked.

Each buffer has a range of addresses of its own, far from all others, so that an access beside it
is seen as such. Shared memory also remembers who touched what since the last barrier: two threads
that are not ordered, one of them writing, are a race, whatever the values were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, Any]
_SHIFT = 40  # addresses of a buffer: its number, shifted by this, and the byte in it
_MANY = -2


class Memory:
    """Buffers of bytes, which are numpy arrays; an address finds its buffer."""

    def __init__(self, buffers: Sequence[Array], what: str):
        self.buffers = [buffer.reshape(-1).view(np.uint8) for buffer in buffers]
        self.what = what

    def address(self, number: int) -> int:
        """Return the address at which a buffer begins."""
        return (number + 1) << _SHIFT

    def load(self, addresses: Array, dtype: np.dtype[Any]) -> Array:
        """Return a value for each address."""
        value = np.empty(addresses.shape, dtype)
        for which, words, at in self._found(addresses, dtype):
            value[which] = words[at]
        return value

    def store(self, addresses: Array, value: Array) -> None:
        """Store a value at each address."""
        for which, words, at in self._found(addresses, value.dtype):
            words[at] = value[which]

    def _found(self, addresses: Array, dtype: np.dtype[Any]) -> Any:
        numbers = (addresses >> np.uint64(_SHIFT)).astype(np.int64) - 1
        offsets = (addresses & np.uint64((1 << _SHIFT) - 1)).astype(np.int64)
        for number in np.unique(numbers):
            which = numbers == number
            inside = offsets[which]
            if not 0 <= number < len(self.buffers):
                raise RunError(f"a thread reads or writes at an address without {self.what}")
            buffer = self.buffers[number]
            worst = int(inside.max()) + dtype.itemsize
            if worst > buffer.size:
                raise RunError(
                    f"a thread reads or writes bytes {worst - dtype.itemsize} to {worst - 1} of "
                    f"{self.what} {number}, which has {buffer.size}"
                )
            if (inside % dtype.itemsize).any():
                raise RunError(f"an access to {self.what} {number} is not aligned")
            whole = buffer.size - buffer.size % dtype.itemsize
            yield which, buffer[:whole].view(dtype), inside // dtype.itemsize


class Shared:
    """The shared memory of several blocks at once: arrays of bytes, in each block one of each."""

    def __init__(self, sizes: Sequence[int], blocks: int, cell: int):
        """`cell` is the smallest access in bytes: what is remembered apart."""
        self.cell = cell
        starts = np.cumsum([0, *(size + -size % 16 for size in sizes)])
        self.sizes, self.starts = np.array(sizes, np.int64), starts[:-1].astype(np.int64)
        self.stride = int(starts[-1])
        self.bytes = np.full(blocks * self.stride, 0xFF, np.uint8)  # NaN, to be noticed
        cells = blocks * self.stride // cell
        self.writer, self.reader, self.reader_warp = (np.full(cells, -1, np.int32) for _ in "123")
        self.written, self.read = (np.full((2, cells), -1, np.int32) for _ in "12")

    def address(self, number: int) -> int:
        """Return the address at which an array begins."""
        return (number + 1) << _SHIFT

    def load(self, addresses: Array, dtype: np.dtype[Any], who: Threads) -> Array:
        """Return a value for each address.

        Raises:
            RunError: an address is outside, or another thread may write there at the same time.
        """
        at = self._positions(addresses, dtype, who)
        for cell in self._cells(at, dtype):
            self._refuse(self._written_by_another(cell, who), "reads what another writes")
            self._note_read(cell, who)
        value: Array = self.bytes.view(dtype)[at // dtype.itemsize]
        return value

    def store(self, addresses: Array, value: Array, who: Threads) -> None:
        """Store a value at each address.

        Raises:
            RunError: an address is outside, or another thread may access it at the same time.
        """
        at = self._positions(addresses, value.dtype, who)
        for cell in self._cells(at, value.dtype):
            self._refuse(self._written_by_another(cell, who), "writes what another writes")
            self._refuse(self._read_by_another(cell, who), "writes what another reads")
            self.writer[cell] = who.thread
            self.written[0][cell], self.written[1][cell] = who.block_step, who.warp_step
        words = self.bytes.view(value.dtype)
        words[at // value.dtype.itemsize] = value
        unsigned = np.dtype(f"u{value.dtype.itemsize}")
        kept = words[at // value.dtype.itemsize].view(unsigned)
        self._refuse(kept != value.view(unsigned), "writes what another writes")

    def _positions(self, addresses: Array, dtype: np.dtype[Any], who: Threads) -> Array:
        numbers = (addresses >> np.uint64(_SHIFT)).astype(np.int64) - 1
        offsets = (addresses & np.uint64((1 << _SHIFT) - 1)).astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= len(self.sizes):
            raise RunError("a thread reads or writes outside of shared memory")
        over = offsets + dtype.itemsize > self.sizes[numbers]
        if over.any():
            raise RunError(
                f"a thread reads or writes byte {int(offsets[over][0])} of a shared array of "
                f"{int(self.sizes[numbers][over][0])} bytes"
            )
        if (offsets % dtype.itemsize).any():
            raise RunError("an access to shared memory is not aligned")
        return who.slot * self.stride + self.starts[numbers] + offsets

    def _cells(self, at: Array, dtype: np.dtype[Any]) -> list[Array]:
        first = at // self.cell
        return [first + k for k in range(dtype.itemsize // self.cell)]

    def _written_by_another(self, cell: Array, who: Threads) -> Array:
        writer = self.writer[cell]
        ordered = (writer // who.warp_size == who.warp) & (self.written[1][cell] < who.warp_step)
        race: Array = (self.written[0][cell] == who.block_step) & (writer != who.thread) & ~ordered
        return race

    def _read_by_another(self, cell: Array, who: Threads) -> Array:
        ordered = (self.reader_warp[cell] == who.warp) & (self.read[1][cell] < who.warp_step)
        same = self.reader[cell] == who.thread
        race: Array = (self.read[0][cell] == who.block_step) & ~same & ~ordered
        return race

    def _note_read(self, cell: Array, who: Threads) -> None:
        """Remember who reads: one thread, one warp, or many."""
        fresh = self.read[0][cell] != who.block_step
        for kept, mine in ((self.reader, who.thread), (self.reader_warp, who.warp)):
            before = kept[cell]
            kept[cell] = mine
            other = (~fresh & (before != mine)) | (kept[cell] != mine)
            kept[cell[other]] = _MANY
        self.read[0][cell], self.read[1][cell] = who.block_step, who.warp_step

    @staticmethod
    def _refuse(race: Array, what: str) -> None:
        if race.any():
            raise RunError(f"a race in shared memory: a thread {what}, without a barrier between")


class Threads:
    """The threads that execute an instruction: their number in the block, block, barriers passed."""

    def __init__(self, thread: Array, slot: Array, steps: tuple[Array, Array], warp_size: int = 32):
        self.thread, self.slot = thread, slot
        self.block_step, self.warp_step = steps
        self.warp_size = warp_size
        self.warp = thread // warp_size
