"""The window of a convolution or a pooling: where its outputs lie over a padded image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Window:
    """Sizes in elements; padding top, left, bottom, right.

    Each of the following is (down, across): `taps` of a filter, `strides`, `dilation`.
    """

    batch: int
    channels: int
    height: int
    width: int
    taps: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]

    @property
    def out_height(self) -> int:
        """Rows of outputs."""
        padded = self.height + self.padding[0] + self.padding[2]
        return (padded - self.span(0, 1)) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Outputs in a row."""
        padded = self.width + self.padding[1] + self.padding[3]
        return (padded - self.span(1, 1)) // self.strides[1] + 1

    def span(self, axis: int, outputs: int) -> int:
        """Return how many inputs lie under some outputs, down (axis 0) or across (1)."""
        steps = (outputs - 1) * self.strides[axis]
        return steps + (self.taps[axis] - 1) * self.dilation[axis] + 1

    def chunk(self, bytes_per_row: int, parts: int, *, cache: int, chunks: int) -> int:
        """Return the rows of outputs of a chunk.

        They are the most whose inputs, `bytes_per_row` each, fit the `cache`, and that cut the
        `parts` of the work into enough `chunks`; all chunks are about equally high.
        """
        rows = self.out_height
        while rows > 1 and (
            bytes_per_row * self.span(0, rows) > cache
            or parts * -(-self.out_height // rows) < chunks
        ):
            rows -= 1
        return -(-self.out_height // -(-self.out_height // rows))
