"""The cache: what is put comes back or counts as missing, whatever happens to its folder."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from mlc import cache as cache_module
from mlc.cache import Cache, default_directory, key_of, open_cache, source_digest
from mlc.options import CacheOptions

KEYS = [hashlib.sha256(bytes([k])).hexdigest() for k in range(12)]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def entry(cache: Cache, kind: str, key: str) -> Path:
    assert cache.directory is not None
    (found,) = cache.directory.glob(f"{kind}/*/{key}")
    return found


def set_age(path: Path, seconds: float) -> None:
    moment = 1_700_000_000 - seconds
    os.utime(path, (moment, moment))


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 999])
def test_what_is_put_comes_back(content: bytes, cache: Cache) -> None:
    assert cache.get("code", KEYS[0]) is None
    cache.put("code", KEYS[0], content)
    assert cache.get("code", KEYS[0]) == content
    assert Cache(cache.directory).get("code", KEYS[0]) == content


def test_kinds_and_keys_are_apart(cache: Cache) -> None:
    cache.put("code", KEYS[0], b"a")
    assert cache.get("facts", KEYS[0]) is None
    assert cache.get("code", KEYS[1]) is None


def test_a_later_put_wins(cache: Cache) -> None:
    cache.put("code", KEYS[0], b"first")
    cache.put("code", KEYS[0], b"second")
    assert cache.get("code", KEYS[0]) == b"second"
    assert cache.stats().entries == {"code": 1}


def damages(data: bytes) -> list[bytes]:
    flipped = [data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :] for k in (0, 31, 32, len(data) - 1)]
    return [*flipped, b"", data[:10], data[:32], data[:-1], data + b"x", bytes(len(data))]


@pytest.mark.parametrize("case", range(10))
def test_a_damaged_entry_counts_as_missing_and_goes(case: int, cache: Cache) -> None:
    cache.put("code", KEYS[0], b"the content")
    path = entry(cache, "code", KEYS[0])
    path.write_bytes(damages(path.read_bytes())[case])
    assert cache.get("code", KEYS[0]) is None
    assert not path.exists()
    cache.put("code", KEYS[0], b"the content")
    assert cache.get("code", KEYS[0]) == b"the content"


def test_an_entry_that_is_a_folder_counts_as_missing(cache: Cache) -> None:
    cache.put("code", KEYS[0], b"a")
    path = entry(cache, "code", KEYS[0])
    path.unlink()
    path.mkdir()
    assert cache.get("code", KEYS[0]) is None
    cache.put("code", KEYS[0], b"a")  # cannot be, and costs nothing but the saving


def test_no_cache_holds_nothing() -> None:
    nothing = Cache(None)
    nothing.put("code", KEYS[0], b"a")
    assert nothing.get("code", KEYS[0]) is None
    assert (nothing.prune(), nothing.clear(), nothing.stats().entries) == (0, 0, {})


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=4 * (100 + 32))
    for age, key in enumerate(KEYS[:4]):
        cache.put("code", key, bytes(100))
        set_age(entry(cache, "code", key), 1000 - age)
    assert cache.prune() == 0  # exactly full is not too much
    assert cache.get("code", KEYS[0]) is not None  # reading counts as use
    for key in KEYS[4:6]:
        cache.put("facts", key, bytes(100))
    assert cache.prune() == 2
    left = [key for key in KEYS[:6] if cache.get("code", key) or cache.get("facts", key)]
    assert left == [KEYS[0], KEYS[3], KEYS[4], KEYS[5]]
    assert sum(cache.stats().bytes.values()) <= cache.max_bytes


def test_pruning_goes_no_further_than_the_bound(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=1000)
    for age, key in enumerate(KEYS[:8]):
        cache.put("code", key, bytes(168))  # 200 with the digest
        set_age(entry(cache, "code", key), -age)
    assert cache.prune() == 3
    assert cache.stats().bytes == {"code": 1000}
    assert cache.prune() == 0


def test_what_would_fill_the_cache_is_not_stored(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=400)
    cache.put("artifacts", KEYS[0], bytes(101))
    assert cache.get("artifacts", KEYS[0]) is None
    cache.put("artifacts", KEYS[0], bytes(100))
    assert cache.get("artifacts", KEYS[0]) == bytes(100)


def test_clearing_leaves_nothing_but_the_folder(cache: Cache) -> None:
    for key in KEYS:
        cache.put("code", key, b"a")
    cache.put("facts", KEYS[0], b"b")
    assert cache.stats().entries == {"code": 12, "facts": 1}
    assert cache.clear() == 13
    assert cache.directory is not None
    assert all_files(cache.directory) == []
    assert cache.clear() == 0
    cache.put("code", KEYS[0], b"again")
    assert cache.get("code", KEYS[0]) == b"again"


def test_clearing_follows_no_link_and_spares_strangers(cache: Cache, tmp_path: Path) -> None:
    """MLC_CACHE_DIR may be set to any folder by mistake."""
    cache.put("code", KEYS[0], b"a")
    assert cache.directory is not None
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"p")
    (cache.directory / "link").symlink_to(outside)
    (cache.directory / "notes.txt").write_bytes(b"n")
    cache.clear()
    assert (outside / "precious").read_bytes() == b"p"
    assert (cache.directory / "notes.txt").exists()


def test_a_missing_folder_is_an_empty_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "none")
    assert (cache.prune(), cache.clear(), cache.stats().entries) == (0, 0, {})
    assert not (tmp_path / "none").exists()


def test_what_a_killed_writer_left_is_counted_and_goes(cache: Cache) -> None:
    cache.put("code", KEYS[0], b"a")
    leftover = entry(cache, "code", KEYS[0]).parent / ".new-abc"
    leftover.write_bytes(bytes(500))
    set_age(leftover, 1000)
    assert cache.stats().bytes["code"] == 33 + 500
    small = Cache(cache.directory, max_bytes=100)
    assert small.prune() == 1
    assert not leftover.exists()
    assert small.get("code", KEYS[0]) == b"a"


def test_a_folder_that_cannot_be_written_costs_only_the_saving(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    cache = Cache(tmp_path / "file" / "cache")
    cache.put("code", KEYS[0], b"a")
    assert cache.get("code", KEYS[0]) is None
    assert (cache.prune(), cache.clear()) == (0, 0)
    assert (tmp_path / "file").read_bytes() == b"no folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_still_serves_what_it_has(cache: Cache) -> None:
    cache.put("code", KEYS[0], b"a")
    folder = entry(cache, "code", KEYS[0]).parent
    folder.chmod(0o500)
    try:
        cache.put("code", KEYS[0], b"b")
        assert cache.get("code", KEYS[0]) == b"a"
    finally:
        folder.chmod(0o700)


def test_a_full_disk_costs_only_the_saving(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    cache.put("code", KEYS[1], b"kept")
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.Path, "replace", full)
        cache.put("code", KEYS[0], b"a")
    assert cache.get("code", KEYS[0]) is None
    assert cache.directory is not None
    assert [path.name for path in all_files(cache.directory)] == [KEYS[1]]


def test_an_interrupt_while_writing_leaves_no_file(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_module.Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.put("code", KEYS[0], b"a")
    assert cache.directory is not None
    assert all_files(cache.directory) == []


# --- several processes ---------------------------------------------------------------------------


def content_of(key: str) -> bytes:
    return key.encode() * 400


def hammer(folder: str, seed: int) -> int:
    """Write, read and prune the same few entries; return how many reads were wrong."""
    cache = Cache(Path(folder), max_bytes=200_000)
    wrong = 0
    for turn in range(120):
        key = KEYS[(turn * (2 * seed + 1) + seed) % len(KEYS)]
        cache.put("code", key, content_of(key))
        found = cache.get("code", KEYS[turn % len(KEYS)])
        wrong += found not in (None, content_of(KEYS[turn % len(KEYS)]))
        if turn % 40 == 39:
            cache.prune()
        if turn == 60 and seed == 0:
            cache.clear()
    return wrong


def test_parallel_writers_never_see_a_half_written_entry(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        wrong = pool.starmap(hammer, [(str(folder), seed) for seed in range(3)])
        pool.close()
        pool.join()
    assert wrong == [0, 0, 0]
    assert {path.name for path in all_files(folder)} <= set(KEYS)  # no temporary file is left
    cache = Cache(folder)
    for key in KEYS:
        cache.put("code", key, content_of(key))
    assert [cache.get("code", key) for key in KEYS] == [content_of(key) for key in KEYS]


# --- where it is, and its keys -------------------------------------------------------------------


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("MLC_CACHE_DIR", "/chosen")
    assert default_directory() == Path("/chosen")
    monkeypatch.setenv("MLC_CACHE_DIR", "")
    assert default_directory() == Path.home() / ".cache" / "mlc"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_directory() == Path("/xdg/mlc")


def test_options_choose_folder_and_bound(own_cache: Path) -> None:
    cache = open_cache()
    assert (cache.directory, cache.max_bytes) == (own_cache, CacheOptions().max_bytes)
    cache = open_cache(CacheOptions(directory="/there", max_bytes=7))
    assert (cache.directory, cache.max_bytes) == (Path("/there"), 7)
    assert cache.stats().directory == "/there"


def test_a_key_depends_on_every_part_and_no_order_of_fields() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    parts = [("a", "b"), ("ab",), ("b", "a"), (["a", "b"],), ("a", "b", None), ("a", 1), ("a", "1")]
    assert len({key_of(*part) for part in parts}) == len(parts)
    assert key_of("x") == hashlib.sha256(json.dumps(["x"]).encode()).hexdigest()


def test_the_source_digest_covers_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mlc"
    (package / "inner").mkdir(parents=True)
    (package / "cache.py").write_text("a")
    (package / "inner" / "other.py").write_text("b")
    monkeypatch.setattr(cache_module, "__file__", str(package / "cache.py"))
    compute = source_digest.__wrapped__
    first = compute()
    assert compute() == first
    (package / "inner" / "other.py").write_text("c")
    second = compute()
    (package / "inner" / "other.py").rename(package / "inner" / "renamed.py")
    assert len({first, second, compute()}) == 3
