"""Default configurations of AutoTVM's templates for GPUs.

Without tuning records TVM 0.19 takes its own from a log that it would download (TopHub). Without
that log every block of a convolution has one thread. Here a block gets up to 256 threads, several
channels by a tile of pixels, four output channels a thread, and a slice of the input channels in
shared memory. The numbers are common sense (whole warps, tiles well under 48 KB), not measured:
tuning on a GPU finds better ones.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tvm.autotvm.task.space import FallbackConfigEntity

from mlc.gpu.device import MAX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

_THREADS, _PIXELS = 256, 64  # of a block, at most
_DEEP = MAX_BLOCK[2]  # templates have channels in z
_COLUMNS, _CHANNELS = 16, 4
_KERNEL = 3  # rows and columns of a filter that are held at once
_UNROLL = 512


class Smallest(FallbackConfigEntity):  # type: ignore[misc]
    """The first choice of every knob: tiles of one. Templates take it for a tuned config."""

    def __init__(self) -> None:
        super().__init__()
        self.is_fallback = False
        self.cost = 1.0  # in seconds; all alike, so that the first template is taken


class Default(FallbackConfigEntity):  # type: ignore[misc]
    """A config that a template fills where it has no record; `depth` channels are read at once."""

    def __init__(self, depth: int = 8):
        super().__init__()
        self.depth = depth

    def fallback_with_reference_log(self, ref_log: Any) -> None:
        """Choose splits by their names; templates ask for this where TVM would use its log."""
        del ref_log
        if "tile_x" not in self.space_map or self.space_map["tile_x"].num_output != 4:
            return
        self.fallback_split("tile_x", [-1, 1, _COLUMNS, 1])
        columns = self["tile_x"].size[2]
        if "tile_y" in self.space_map:
            self.fallback_split("tile_y", [-1, 1, _PIXELS // columns, 1])
        pixels = columns * (self["tile_y"].size[2] if "tile_y" in self.space_map else 1)
        if "tile_f" in self.space_map:
            self.fallback_split("tile_f", [-1, 1, min(_DEEP, _THREADS // pixels), _CHANNELS])
        for name, most in (("tile_rc", self.depth), ("tile_ry", _KERNEL), ("tile_rx", _KERNEL)):
            if name in self.space_map:
                self.fallback_split(name, [-1, min(most, self.depth)])
        unroll = self.space_map.get("auto_unroll_max_step")
        if unroll is not None:
            fitting = [entity for entity in unroll.entities if entity.val <= _UNROLL]
            self["auto_unroll_max_step"] = max(fitting, key=lambda entity: entity.val)


# For a kernel that does not fit with what it was given, by what users are told.
SMALLER: dict[str, Callable[[], Any]] = {
    "smaller tiles": partial(Default, depth=1),
    "the smallest": Smallest,
}
