"""The dispatch context itself, a subclass of AutoTVM's: importing this module imports TVM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tir
from tvm.autotvm.task.dispatcher import DispatchContext
from tvm.autotvm.task.space import ConfigEntity

from mlc.tune.record import Record, workload_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlc.tune.dispatch import Lookup


class Dispatch(DispatchContext):  # type: ignore[misc]
    """Offers records by workload key.

    `asked` lists the keys that schedules asked for since it was last cleared; `origin` maps the workload of
    an altered layout to the one that was tuned for it; `used` holds the records that were found; `rivals`
    maps a workload to another that computes the same.
    """

    def __init__(self, lookup: Lookup, make: Callable[[], Any]) -> None:
        super().__init__()
        self._lookup, self._make = lookup, make
        self.asked: list[str] = []
        self.origin: dict[str, str] = {}
        self.used: dict[str, Record] = {}
        self.rivals: dict[str, str] = {}
        self.known: dict[str, Any] = {}
        self.fallbacks: dict[str, Any] = {}

    def _query_inside(self, _target: Any, workload: Any) -> Any:
        if has_open_sizes(workload):  # no record can be of it
            return self.fallbacks.setdefault(str(workload), self._make())
        key = workload_key(workload)
        self.asked.append(key)
        config = self._find(key)
        # One fallback object per workload: a template writes its default into it.
        return config or self.fallbacks.setdefault(key, self._make())

    def _find(self, key: str) -> Any:
        if key not in self.known:
            record = self._lookup(key)
            # A record may say that the default is best: that is no config of its own.
            self.known[key] = config_of(record) if record and record.index >= 0 else None
            if record:
                self.used[key] = record
        return self.known[key]

    def update(self, _target: Any, workload: Any, config: Any) -> None:
        """Take the config of an altered layout, whose logical workload was asked for just before."""
        key = workload_key(workload)
        self.known[key] = config
        self.origin[key] = self.asked[-1]

    def compete(self, *workloads: Any) -> tuple[Record | None, Record | None]:
        """Note that two workloads compute the same, and return their records."""
        one, other = map(workload_key, workloads)
        self.rivals |= {one: other, other: one}
        return self._lookup(one), self._lookup(other)

    def tuned(self, keys: Sequence[str]) -> list[str]:
        """Return the tuned workloads behind the ones that a kernel asked for."""
        return list(dict.fromkeys(self.origin.get(key, key) for key in keys))

    def fingerprint(self, keys: Sequence[str]) -> list[Any]:
        """Return what decides the code of a kernel that asks for these workloads."""
        return [(key, _text(self._find(key))) for key in keys]


def has_open_sizes(workload: Any) -> bool:
    """Return whether a size in a workload is no number (`frontend.open_dims`)."""
    if isinstance(workload, (tuple, list)):
        return any(has_open_sizes(part) for part in workload)
    return isinstance(workload, tir.PrimExpr) and not isinstance(workload, tir.IntImm)


def config_of(record: Record) -> Any:
    """Return AutoTVM's config entity of a record."""
    config = ConfigEntity.from_json_dict(record.config)
    config.cost = record.cost
    return config


def _text(config: Any) -> Any:
    if config is None or (config.is_fallback and not config._entity_map):
        return "fallback"
    return [(name, repr(entity)) for name, entity in sorted(config._entity_map.items())]
