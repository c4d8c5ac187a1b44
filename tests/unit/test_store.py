"""The log store: nothing measured is lost, nothing foreign is applied, whatever happens to it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlc.cpu import HostCpu
from mlc.errors import TuningError, UsageError
from mlc.target import Target
from mlc.tune import explain, logs
from mlc.tune.device import device_for
from mlc.tune.lines import understand
from mlc.tune.record import (
    FALLBACK,
    MAX_LINE,
    TVM_VERSION,
    Record,
    encode,
    workload_id,
    workload_key,
)
from mlc.tune.store import Damage, Store, read_log

TEMPLATE = "dense_pack.x86"
HASH = "8ca9d8be4fd8"
HASHES = {TEMPLATE: HASH}


def workload(size: int = 512) -> str:
    tensors = [["TENSOR", shape, "float32"] for shape in ([1, size], [1000, size])]
    return workload_key([TEMPLATE, *tensors, None, "float32"])


def device(cpu: str = "Cpu A", level: int = 3) -> str:
    isa = {2: "sse4.2", 3: "avx2", 4: "avx512f"}[level]
    target = Target(
        name=f"x86-64-v{level}",
        kind="cpu",
        description="",
        triple="x86_64-linux-gnu",
        mcpu=f"x86-64-v{level}",
        features=(isa,),
    )
    host = HostCpu(arch="x86_64", vendor="", family=0, model=0, name=cpu, features=frozenset(),
                   cores=8)  # fmt: skip
    return device_for(target, host, 8).id


HERE = device()


def record(config: int = 0, cost: float = 1e-3, **changes: Any) -> Record:
    """Return a record of this device; a cost of 0 means that it failed."""
    outcome: dict[str, Any] = {"costs": (cost, cost)} if cost else {"reason": "crash"}
    fields = {
        "workload": workload(),
        "config": {"index": config, "code_hash": None, "entity": [["tile_y", "sp", [-1, 8]]]},
        "target": "llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64-v3",
        "device": HERE,
        "template_hash": HASH,
        "timestamp": 1.7e9 + config,
        **outcome,
        **changes,
    }
    return Record(**fields)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "tuning_logs")


def log_of(store: Store) -> Path:
    return store.path_of(record())


def index_of(store: Store) -> Path:
    """Return where the index of a store lies, built."""
    store.measured(workload(), HERE, HASH)
    return store._index


def winner(store: Store, **arguments: Any) -> tuple[int, str] | None:
    """Return config and level of what applies here."""
    asked = {"device": HERE, "template_hashes": HASHES, **arguments}
    hit = store.best([workload()], **asked).get(workload())
    return (hit.record.index, hit.level) if hit else None


# Appending and reading.


def test_an_empty_store_answers_and_makes_no_folder(store: Store) -> None:
    assert list(store.read()) == []
    assert store.measured(workload(), HERE, HASH) == set()
    assert store.best([workload()], HERE, HASHES) == {}
    assert store.history(TEMPLATE, HERE) == []
    assert logs.list_files(store) == []
    store.append([])
    assert not store.root.exists()


def test_records_come_back_from_another_store(store: Store) -> None:
    written = [record(0), record(1, cost=0), record(2, device=device("Cpu B"))]
    store.append(written[:1])
    store.append(written[1:])
    again = Store(store.root)
    assert list(again.read(HERE)) == written[:2]
    assert Counter(map(encode, again.read())) == Counter(map(encode, written))
    assert log_of(store) == store.root / HERE.partition(".")[0] / f"{HERE}.jsonl"
    assert again.measured(workload(), HERE, HASH) == {0, 1}


def test_records_without_a_device_lie_apart_and_never_apply(store: Store) -> None:
    plain = record(5, device="", template_hash="", target="llvm -keys=cpu -mcpu=x86-64-v3")
    odd = record(6, device="", template_hash="", target="cuda -arch=sm_90/../..")
    store.append([plain, odd])
    paths = sorted(path.relative_to(store.root) for path in store.root.rglob("*.jsonl"))
    assert [path.name for path in paths] == ["imported.jsonl"] * 2
    assert all(len(path.parts) == 2 for path in paths)
    assert winner(store) is None
    assert winner(store, template_hashes={TEMPLATE: ""}) is None
    assert winner(store, device="", template_hashes={TEMPLATE: ""}) == (5, "exact")
    assert {r.index for r in store.history(TEMPLATE, HERE, level="hint")} == {5, 6}


@pytest.mark.parametrize("bad", ["../../etc/x", "a/b", ".hidden", "x\x1b", "a" * 300, "ü.avx2"])
def test_a_device_id_that_is_no_file_name_is_refused(store: Store, bad: str) -> None:
    with pytest.raises(TuningError, match="device"):
        store.append([record(device=bad)])
    assert understand(encode(record(device=bad)).encode()) is None
    assert not store.root.exists()


def test_a_record_without_an_outcome_is_refused(store: Store) -> None:
    with pytest.raises(TuningError, match="no outcome"):
        store.append([record(costs=())])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_batch_is_on_the_disk_when_append_returns(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    store.append([record(1), record(2)])
    folders = [log_of(store).parent.name, store.root.name]
    assert synced == [log_of(store).name, *folders]  # the file, and its new name
    store.append([record(3)])
    assert synced[3:] == [log_of(store).name]


# Damage.


def test_a_line_torn_at_any_byte_costs_only_itself(store: Store, tmp_path: Path) -> None:
    store.append([record(k) for k in range(3)])
    path = log_of(store)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        complete = end >= len(whole) - 1  # only the line break is missing
        torn = 0 if complete or end == start else 1
        known = 3 if complete else 2
        damage = Damage()
        assert len(list(store.read(damage=damage))) == known, end
        assert damage == Damage(torn=torn), end
        if end % 64 == 0 or end > len(whole) - 3:
            assert store.measured(workload(), HERE, HASH) == set(range(known)), end
        store.append([record(9)])
        damage = Damage()
        assert [r.index for r in store.read(damage=damage)] == [*range(known), 9], end
        assert damage == Damage(torn=torn), end
        if end % 64 == 0 or end > len(whole) - 3:
            assert store.measured(workload(), HERE, HASH) == {*range(known), 9}, end


HOSTILE = {
    "nothing": b"",
    "comment": b"# written by hand",
    "text": b"hello",
    "not UTF-8": b"\xff\xfe\x00{",
    "nested": b"[" * 100_000,
    "nested workload": encode(record()).replace('"float32"', "[" * 600 + "]" * 600, 1).encode(),
    "infinite index": encode(record()).replace('"index":0', '"index":Infinity').encode(),
    "huge index": encode(record()).replace('"index":0', f'"index":{2**70}').encode(),
    "huge cost": encode(record()).replace("0.001", "1" + "0" * 400).encode(),
    "no time": encode(record()).replace("1700000000.0", "NaN").encode(),
    "far time": encode(record()).replace("1700000000.0", "1e300").encode(),
    "no costs": encode(record()).replace("[0.001,0.001]", "[]").encode(),
    "escape in the template": encode(record()).replace(TEMPLATE, "\\u001b[31m").encode(),
    "surrogate in the hash": encode(record()).replace(HASH, "\\ud800").encode(),
    "path as a device": encode(record()).replace(HERE, "../../x").encode(),
    "newer format": encode(record()).replace('"format":1', '"format":99').encode(),
    "endless": b"x" * (3 * MAX_LINE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_line_is_counted_and_skipped(store: Store, name: str) -> None:
    store.append([record(1)])
    path = log_of(store)
    path.write_bytes(HOSTILE[name] + b"\n" + path.read_bytes() + HOSTILE[name] + b"\n")
    damage = Damage()
    assert [r.index for r in store.read(damage=damage)] == [1]
    expected = 0 if name in ("nothing", "comment") else 2
    assert damage.foreign == expected
    counted = Damage()
    assert winner(store, damage=counted) == (1, "exact")
    assert (counted.torn, counted.foreign) == (damage.torn, damage.foreign)


@settings(deadline=None, max_examples=40)
@given(noise=st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_between_records_cost_no_record(
    tmp_path_factory: pytest.TempPathFactory, noise: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("noise") / "log.jsonl"
    parts = [encode(record(k)).encode() + b"\n" for k in range(len(noise))]
    path.write_bytes(b"".join(part + text + b"\n" for part, text in zip(parts, noise, strict=True)))
    assert [r.index for r in read_log(path)] == list(range(len(noise)))


def test_a_line_without_an_end_is_skipped_in_bounded_memory(store: Store) -> None:
    store.append([record(1)])
    with log_of(store).open("ab") as log:
        log.write(b"{" * (2 * MAX_LINE))
    assert [r.index for r in store.read()] == [1]
    store.append([record(2)])
    assert store.measured(workload(), HERE, HASH) == {1, 2}


# Processes that die or write at once. The writer's disk takes a few hundred bytes at a time, so that
# a batch is many writes and a kill often comes in the middle of one.

WRITER = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from mlc.tune import record, store
write = os.write
def slow(handle, data):
    time.sleep(0.0002)
    return write(handle, data[:701])
store.os = type("Os", (), {**vars(os), "write": staticmethod(slow)})
root, run, batches, size, line = sys.argv[1:]
mine, one = store.Store(Path(root)), record.decode(line)
for batch in range(int(batches)):
    indices = range(batch * int(size), (batch + 1) * int(size))
    mine.append([replace(one, config={**one.config, "index": k}, run=run) for k in indices])
    print(batch, flush=True)
"""


def writer_command(store: Store, run: str, batches: int, size: int, before: str = "") -> list[str]:
    """Return the command of a process that appends `batches` batches of `size` records."""
    facts = (str(store.root), run, str(batches), str(size), encode(record()))
    return [sys.executable, "-B", "-c", before + WRITER, *facts]


def writer(store: Store, run: str, batches: int, size: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(writer_command(store, run, batches, size), stdout=subprocess.PIPE)


def by_run(store: Store, damage: Damage) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for r in store.read(damage=damage):
        found.setdefault(r.run, []).append(r.index)
    return found


def test_a_killed_writer_loses_at_most_its_batch(store: Store) -> None:
    size, rounds, rng = 16, 20, random.Random(0)
    for k in range(rounds):
        process = writer(store, str(k), 10**6, size)
        assert process.stdout
        assert process.stdout.readline() == b"0\n"
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        acknowledged = size * (1 + process.stdout.read().count(b"\n"))
        process.stdout.close()
        process.wait()
        damage = Damage()
        known = by_run(store, damage)[str(k)]
        assert known == list(range(len(known)))  # in order, no gap, none twice
        assert acknowledged <= len(known) <= acknowledged + size
        assert damage.torn <= k + 1
        assert damage.foreign == 0
        assert store.measured(workload(), HERE, HASH) >= set(known)
    store.append([record(7, run="after")])
    assert by_run(store, Damage())["after"] == [7]


def test_parallel_writers_do_not_mix_lines(store: Store) -> None:
    processes = [writer(store, str(k), 10, 8) for k in range(4)]
    while any(process.poll() is None for process in processes):
        store.measured(workload(), HERE, HASH)  # readers, too, go on
        time.sleep(0.05)
    for process in processes:
        assert process.stdout
        process.stdout.close()
    assert [process.returncode for process in processes] == [0] * 4
    damage = Damage()
    assert by_run(store, damage) == {str(k): list(range(80)) for k in range(4)}
    assert damage == Damage()
    # A batch is one piece: no other one begins inside it.
    runs = [r.run for r in store.read()]
    assert all(len(set(runs[k : k + 8])) == 1 for k in range(0, len(runs), 8))


# Disks that refuse.


def test_a_full_disk_leaves_the_log_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([record(0)])
    before = log_of(store).read_bytes()
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 100:
            return write(handle, data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TuningError, match="No space left") as caught:
        store.append([record(1), record(2)])
    assert "--logs" in str(caught.value.hint)
    assert log_of(store).read_bytes() == before
    with pytest.raises(TuningError):
        store.append([record(1, device=device("Cpu B"))])
    assert list(store.read(device("Cpu B"))) == []
    monkeypatch.undo()
    store.append([record(1)])
    assert store.measured(workload(), HERE, HASH) == {0, 1}


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as Linux has it")
def test_a_file_that_may_not_grow_is_an_error_with_nothing_half_written(store: Store) -> None:
    store.append([record(k) for k in range(3)])
    before = log_of(store).read_bytes()
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 200},) * 2)\n"
    )
    command = writer_command(store, "x", 1, 4, limited)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "TuningError: cannot write the tuning log" in done.stderr
    assert "File too large" in done.stderr
    assert log_of(store).read_bytes() == before


def test_an_interrupt_in_the_middle_of_a_batch_takes_it_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([record(0)])
    before = log_of(store).read_bytes()
    write = os.write
    pieces = itertools.count()

    def interrupted(handle: int, data: bytes) -> int:
        if next(pieces):
            raise KeyboardInterrupt
        return write(handle, data[:100])

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.append([record(1)])
    assert log_of(store).read_bytes() == before


def test_a_read_only_folder_is_an_error_but_can_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([record(3)])
    lock = log_of(store).parent / ".lock"
    lock.unlink()
    real = os.open

    def read_only(path: Any, flags: int, *rest: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(TuningError, match="Read-only file system"):
        store.append([record(4)])
    assert not lock.exists()
    assert [r.index for r in store.read()] == [3]
    assert winner(store) == (3, "exact")


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("not a folder")
    with pytest.raises(TuningError, match="cannot write"):
        Store(tmp_path / "logs").append([record()])


def test_a_log_that_cannot_be_read_is_an_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([record()])

    def denied(*_args: Any, **_kwargs: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(log_of(store)))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(TuningError, match="Permission denied"):
        winner(store)
    with pytest.raises(TuningError, match="Permission denied"):
        list(store.read())


# What applies.


def test_the_lowest_mean_cost_wins_and_the_first_of_equals(store: Store) -> None:
    store.append(
        [
            record(0, 2e-3),
            record(1, cost=0),
            record(2, costs=(1e-3, 3e-3)),
            record(3, 1.5e-3),
            record(4, 1.5e-3),
            record(5, 1.5e-3, timestamp=1.6e9),
        ]
    )
    assert winner(store) == (5, "exact")
    store.append([record(6, 1e-3)])
    assert winner(store) == (6, "exact")


def test_the_newest_chosen_record_goes_before_all_others(store: Store) -> None:
    store.append([record(0, 1e-4), record(1, 3e-4, chosen=True), record(2, 2e-4, chosen=True)])
    assert winner(store) == (2, "exact")
    store.append([record(3, 1e-5)])
    assert winner(store) == (2, "exact")
    default = {"index": FALLBACK, "code_hash": None, "entity": []}
    store.append([replace(record(9, 9e-4, chosen=True), config=default)])
    assert winner(store) == (FALLBACK, "exact")
    assert store.measured(workload(), HERE, HASH) == {FALLBACK, 0, 1, 2, 3}


def test_this_device_goes_before_its_class_and_its_class_before_nothing(store: Store) -> None:
    store.append([record(1, 1e-6, device=device("Cpu B")), record(2, 1e-5, device=device("Cpu C"))])
    assert winner(store) == (1, "same-isa")
    store.append([record(3, cost=0)])
    assert winner(store) == (1, "same-isa")  # a failure here is no record that applies
    store.append([record(4, 1.0)])
    assert winner(store) == (4, "exact")


def test_another_class_never_applies(store: Store) -> None:
    store.append([record(1, device=device(level=2)), record(2, device=device(level=4))])
    damage = Damage()
    assert winner(store, damage=damage) is None
    assert damage == Damage()
    assert store.history(TEMPLATE, HERE, level="same-isa") == []
    assert {r.index for r in store.history(TEMPLATE, HERE, level="hint")} == {1, 2}


def test_machines_without_a_class_share_records_only_within_a_target(store: Store) -> None:
    store.append([record(1, device="a-01.scalar.x.1t"), record(2, device="gpu-01.rtx.1t")])
    assert winner(store, device="a-01.scalar.y.1t") == (1, "same-isa")
    assert winner(store, device="b-02.scalar.y.1t") is None
    assert winner(store, device="gpu-02.rtx.1t") is None
    assert winner(store, device="gpu-01.rtx.1t") == (2, "exact")


def test_other_code_versions_are_counted_and_never_applied(store: Store) -> None:
    near = device("Cpu B")
    store.append([record(1, template_hash="old"), record(2, tvm_version="0.18.0")])
    store.append([record(k, device=near, template_hash="old") for k in range(3)])
    damage = Damage()
    assert winner(store, damage=damage) is None
    assert damage == Damage(other_version=1, other_template=4)
    assert winner(store, template_hashes={}) is None
    assert winner(store, template_hashes={TEMPLATE: "old"}) == (1, "exact")
    assert store.measured(workload(), HERE, HASH) == set()
    assert store.measured(workload(), HERE, "old") == {1}
    seen = Damage()
    assert len(list(store.read(damage=seen))) == 5
    assert seen.other_version == 1
    assert logs.damage(store).other_version == 1


def test_only_the_workloads_that_were_asked_for_come_back(store: Store) -> None:
    store.append([record(1), record(2, workload=workload(64))])
    asked = [workload(64), workload(), workload(), workload(7)]
    hits = store.best(asked, HERE, HASHES)
    assert {key: hit.record.index for key, hit in hits.items()} == {workload(): 1, workload(64): 2}


def test_history_is_of_one_template_and_the_newest_are_kept(store: Store) -> None:
    other = workload_key(["other.x86", 1])
    store.append([record(k, cost=k % 2) for k in range(6)])
    store.append([record(7, workload=other), record(8, tvm_version="0.18.0")])
    assert [r.index for r in store.history(TEMPLATE, HERE)] == [0, 1, 2, 3, 4, 5]
    assert [r.index for r in store.history(TEMPLATE, HERE, limit=2)] == [4, 5]


# The index.


def test_the_index_follows_what_others_append(store: Store) -> None:
    store.append([record(1, 2e-3)])
    assert winner(store) == (1, "exact")
    with log_of(store).open("a") as log:
        log.write(encode(record(2)) + "\n" + encode(record(3))[:50])
    assert winner(store) == (2, "exact")
    with log_of(store).open("a") as log:
        log.write(encode(record(3))[50:])
    assert store.measured(workload(), HERE, HASH) == {1, 2, 3}
    shutil.copy(log_of(store), store.root / "copied.jsonl")
    log_of(store).unlink()
    assert store.measured(workload(), HERE, HASH) == {1, 2, 3}
    (store.root / "copied.jsonl").unlink()
    assert winner(store) is None


def test_the_index_reads_only_what_is_new(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlc.tune import lines

    store.append([record(k) for k in range(50)])
    index_of(store)
    read: list[bytes] = []
    real = lines.understand
    monkeypatch.setattr(lines, "understand", lambda text: read.append(text) or real(text))
    assert len(store.measured(workload(), HERE, HASH)) == 50
    assert read == []
    store.append([record(50)])
    assert len(store.measured(workload(), HERE, HASH)) == 51
    assert len(read) == 1


def test_a_replaced_log_with_the_same_ends_is_indexed_anew(store: Store) -> None:
    store.append([record(k, 2e-3) for k in range(60)])
    assert winner(store) == (0, "exact")
    path = log_of(store)
    edited = path.read_text().replace('"index":30,', '"index":99,') + encode(record(60)) + "\n"
    path.with_suffix(".new").write_text(edited)
    path.with_suffix(".new").replace(path)
    assert store.measured(workload(), HERE, HASH) == {*range(61), 99} - {30}


def _shrink(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))


def _replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes().replace(b'"index":2', b'"index":7'))
    other.replace(path)


def _rewrite_longer(path: Path) -> None:
    # In place: same inode, larger, but not the same file any more.
    path.write_text("".join(encode(record(k)) + "\n" for k in (5, 6, 7, 8)))


@pytest.mark.parametrize(
    ("change", "known"),
    [(_shrink, {1}), (_replace, {1, 7}), (_rewrite_longer, {5, 6, 7, 8})],
    ids=["shrunk", "replaced", "rewritten"],
)
def test_a_log_that_did_not_only_grow_is_indexed_anew(
    store: Store, change: Any, known: set[int]
) -> None:
    store.append([record(1, 2e-3), record(2, 1e-3)])
    assert winner(store) == (2, "exact")
    change(log_of(store))
    assert store.measured(workload(), HERE, HASH) == known
    assert winner(store) is not None


def _overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def _other_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE files (x)")
    database.close()


def _other_layout(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 999")
    database.close()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Any] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "header": lambda path: _overwrite(path, 0, b"garbage " * 8),
    "middle": lambda path: _overwrite(path, 4096, os.urandom(path.stat().st_size - 4096)),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "text": lambda path: path.write_bytes(b"hello\n" * 5000),
    "another database": _other_database,
    "another layout": _other_layout,
    "a folder": _folder,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_index_is_built_anew(store: Store, name: str) -> None:
    store.append([record(k, workload=workload(64 + k % 50)) for k in range(2000)])
    store.append([record(1, 2e-3), record(2, 1e-3)])
    DAMAGES[name](index_of(store))
    assert winner(store) == (2, "exact")
    assert store.measured(workload(), HERE, HASH) == {1, 2}
    assert winner(Store(store.root)) == (2, "exact")


@pytest.mark.parametrize("offset", ["best_offset + 1", "0"], ids=["no record", "another record"])
def test_an_index_that_lies_is_built_anew(store: Store, offset: str) -> None:
    store.append([record(2, workload=workload(64)), record(1)])
    with sqlite3.connect(index_of(store)) as database:
        database.execute(f"UPDATE groups SET best_offset = {offset}")
    database.close()
    assert winner(store) == (1, "exact")


def test_a_cache_folder_that_cannot_be_written_costs_only_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLC_CACHE_DIR", str(tmp_path / "file"))
    other = Store(store.root)
    other.append([record(1)])
    assert winner(other) == (1, "exact")
    private = other._index.parent
    assert private.is_dir()
    del other
    assert not private.exists()


def test_the_index_lies_in_the_cache_folder_and_not_beside_the_logs(
    store: Store, own_cache: Path, tmp_path: Path
) -> None:
    store.append([record()])
    assert index_of(store).parent == own_cache / "logs-index"
    names = {path.name for path in store.root.rglob("*")}
    assert names == {log_of(store).parent.name, log_of(store).name, ".lock"}
    mine = Store(store.root, index=tmp_path / "here" / "mine.sqlite")
    assert winner(mine) == (0, "exact")
    assert (tmp_path / "here" / "mine.sqlite").exists()


# Merging, pruning, exporting, explaining.


def test_merging_skips_what_is_known(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    twins = [record(3), record(3, cost=5e-3), record(3, timestamp=1.0), record(3, cost=0)]
    other.append([record(k) for k in range(3)] + twins + [record(20, timestamp=2.0)])
    other.append([record(1, device=device("Cpu B"))])
    with log_of(other).open("ab") as log:
        log.write(b"hello\n" + encode(record(8)).encode()[:40])
    store.append([record(1), record(20)])
    done = logs.merge(store, other.root)
    # Of the twins, those with one time are one measurement.
    assert (done.added, done.duplicates, done.nameless) == (6, 3, 0)
    assert done.damage == Damage(torn=1, foreign=1)
    assert store.measured(workload(), HERE, HASH) == {0, 1, 2, 3, 20}
    again = logs.merge(store, other.root)
    assert (again.added, again.duplicates) == (0, 9)
    itself = logs.merge(store, store.root)
    assert itself.added == 0
    assert itself.duplicates == 8


def test_a_file_without_records_cannot_be_merged(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("hello\n")
    with pytest.raises(UsageError, match="holds no tuning records \\(1 other lines\\)"):
        logs.merge(store, tmp_path / "x.log")
    with pytest.raises(UsageError, match="there is no"):
        logs.merge(store, tmp_path / "missing")
    assert not store.root.exists()


def test_pruning_keeps_the_best_of_each_task_and_device(store: Store) -> None:
    costs = [5e-3, 1e-3, 4e-3, 0, 2e-3, 3e-3]
    for size, where in itertools.product((64, 512), (HERE, device("Cpu B"))):
        store.append(
            record(k, cost, workload=workload(size), device=where) for k, cost in enumerate(costs)
        )
    store.append([record(9, 9e-3, template_hash="old"), record(8, 1e-9, tvm_version="0.18.0")])
    store.append([record(7, 8e-3, chosen=True)])
    with log_of(store).open("ab") as log:
        log.write(b"hello\n")
    mode = log_of(store).stat().st_mode
    before = log_of(store).read_bytes()
    planned = logs.prune(store, keep=2, dry_run=True)
    assert log_of(store).read_bytes() == before
    done = logs.prune(store, keep=2)
    assert (done.kept, done.dropped, done.damaged, done.files) == (10, 17, 1, 2)
    assert replace(done, saved_bytes=0) == planned
    assert done.saved_bytes > 0
    kept = [(r.workload, r.index) for r in store.read(HERE) if r.template_hash == HASH
            and r.tvm_version == TVM_VERSION]  # fmt: skip
    assert kept == [(workload(64), 1), (workload(64), 4), (workload(), 1), (workload(), 7)]
    assert {r.index for r in store.read(HERE) if r.template_hash == "old"} == {9}
    assert winner(store) == (7, "exact")
    assert log_of(store).stat().st_mode == mode
    assert logs.prune(store, keep=2).dropped == 0
    assert {path.name for path in log_of(store).parent.iterdir()} == {
        ".lock", log_of(store).name, f"{device('Cpu B')}.jsonl"
    }  # fmt: skip


def test_pruning_only_failures_leaves_no_file(store: Store) -> None:
    store.append([record(1, cost=0)])
    assert logs.prune(store, keep=3).dropped == 1
    assert not log_of(store).exists()
    with pytest.raises(UsageError):
        logs.prune(store, keep=0)


def test_pruning_on_a_full_disk_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([record(k) for k in range(5)])
    before = log_of(store).read_bytes()

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TuningError, match="No space left"):
        logs.prune(store, keep=1)
    monkeypatch.undo()
    assert log_of(store).read_bytes() == before
    assert len(list(log_of(store).parent.iterdir())) == 2  # the log and the lock


def test_a_record_that_is_appended_while_pruning_waits_and_stays(store: Store) -> None:
    store.append([record(k) for k in range(40)])
    process = writer(store, "w", 40, 1)
    while process.poll() is None:
        logs.prune(store, keep=1000)
        logs.prune(store, keep=60)
    assert process.stdout
    process.stdout.close()
    assert process.returncode == 0
    assert len(by_run(store, Damage())["w"]) >= 20
    assert logs.damage(store) == Damage()


def test_an_export_is_read_back(store: Store, tmp_path: Path) -> None:
    default = {"index": FALLBACK, "code_hash": None, "entity": []}
    store.append([record(1, 2e-3), record(2, 1e-3), record(3, cost=0)])
    store.append([replace(record(workload=workload(64), chosen=True), config=default)])
    output = tmp_path / "best.json"
    assert logs.export(store, output, logs.Choice()) == 1
    assert [r.index for r in read_log(output)] == [2]
    assert logs.export(store, output, logs.Choice(), everything=True) == 3
    assert logs.merge(Store(tmp_path / "other"), output).added == 3
    with pytest.raises(UsageError, match="no record"):
        logs.export(store, output, logs.Choice(device="avx512"))
    assert len(list(read_log(output))) == 3
    with pytest.raises(TuningError, match="cannot write"):
        logs.export(store, tmp_path / "missing" / "x.json", logs.Choice())


def said(store: Store, **changes: Any) -> str:
    arguments = {"task": workload_id(workload()), "device": HERE, "hashes": HASHES, **changes}
    return "\n".join(explain.explain(store, **arguments))


def test_the_explanation_names_each_reason(store: Store) -> None:
    task = workload_id(workload())
    store.append([record(workload=workload(64))])
    assert said(store).startswith(f"miss: there is no record of {task}")
    assert workload_id(workload(64)) in said(store)

    store.append([record(k, device=device(level=4)) for k in range(3)])
    store.append([record(1, device="", template_hash="")])
    assert said(store).startswith("miss: no record of")
    assert f"{device(level=4)} (avx512): 3" in said(store)
    assert "1 imported records name no device" in said(store)

    store.append([record(1, template_hash="old"), record(2, tvm_version="0.18.0")])
    assert "1 records are of TVM 0.18.0" in said(store)
    assert f"template hash old, now {HASH}" in said(store)

    store.append([record(1, cost=0), record(2, cost=0), record(3, cost=0, reason="run timeout")])
    assert "all 3 records of this device are failures: 2x crash, 1x run timeout" in said(store)
    assert f"mlc tune MODEL --tasks {task}" in said(store)
    assert explain.applies(store, task, HERE, HASHES) is None

    store.append([record(5, 2e-3, device=device("Cpu B"))])
    assert said(store).startswith("hit from another device of the same class (avx2)")
    assert device("Cpu B") in said(store)
    assert explain.applies(store, task, HERE, HASHES) == "same-isa"

    store.append([record(6, 1e-3)])
    assert said(store).startswith("hit: config 6, 1 ms, measured 2023-11-14 on this device")
    assert said(store, task=json.dumps(json.loads(workload()))) == said(store)
    assert explain.applies(store, workload(), HERE, HASHES) == "exact"
    assert "was not compared" in said(store, hashes={})
    assert explain.templates(store, task) == {TEMPLATE}


@pytest.mark.parametrize("text", ["", "resnet", "[", "[]", "[" * 5000, "x-123"])
def test_what_names_no_task_is_a_usage_error(store: Store, text: str) -> None:
    with pytest.raises(UsageError):
        explain.explain(store, text, HERE, HASHES)
