"""Functions in processes of their own."""

from __future__ import annotations

import gc
from typing import Any, ClassVar

from mlc import isolate


class Native:
    """Stands for an object whose destructor waits for threads that a fork does not have."""

    ended: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.cycle = self  # only the collector frees it

    def __del__(self) -> None:
        Native.ended.append("here")


def test_a_fork_leaves_the_garbage_that_it_inherits():
    def collected(_on_event: Any) -> list[str]:
        gc.collect()
        return Native.ended

    gc.collect()
    gc.disable()  # or it may be gone before the fork
    try:
        Native()
        assert isolate.forked(collected) == []
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert Native.ended == ["here"]


def test_a_fork_of_a_fork_leaves_the_first_ones_too():
    """As the process that measuring is forked from, which forks a child for each job."""

    def collected(_on_event: Any) -> list[str]:
        isolate.forked(lambda _: None)
        gc.collect()
        return Native.ended

    gc.collect()
    Native.ended.clear()
    gc.disable()
    try:
        Native()
        assert isolate.forked(collected) == []
    finally:
        gc.enable()
