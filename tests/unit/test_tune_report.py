"""The files of a tuning report: whole, self-contained, safe with any name."""

from __future__ import annotations

import importlib.util
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mlc import report
from mlc.errors import MissingToolError, UsageError
from mlc.options import TuneOptions
from mlc.report import Place, curve, place_for

IDS = [f"conv2d_NCHWc.x86-{k:08x}" for k in range(9)]
SECONDS = [(9 - k) * 1e-3 for k in range(9)]


def point(trials: int, factor: float) -> dict[str, Any]:
    parts = [factor * part for part in SECONDS]
    return {
        "trials": trials, "seconds": trials / 2, "estimate": sum(parts), "task": IDS[0],
        "parts": parts,
    }  # fmt: skip


def task(position: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": IDS[position], "template": "conv2d_NCHWc.x86", "shapes": "1x8x9x9 8x8x3x3",
        "calls": 2, "flops": 2_000_000, "share": 0.25, "trials": 31, "failed": 5,
        "untuned": 4e-5, "best": 2e-5, "checked": "agrees with the default", **changes,
    }  # fmt: skip


FOUND: dict[str, Any] = {
    "run": "r1", "device": "znver4.avx512.cpu.2t", "logs": "tuning_logs", "measured": 40,
    "known": 8, "failures": {"run timeout": 2, "crash": 7}, "seconds": 61.5,
    "tasks": [task(0), task(1, best=None, untuned=None, checked=""), *map(task, range(2, 9))],
    "model": {"before": 0.04, "after": 0.02, "ratio": 2.0, "low": 1.9, "high": 2.1},
    "peak_gflops": 200.0,
    "curve": [point(8, 1.0), point(24, 0.7), point(48, 0.5)],
    "trust": {
        "conv2d_NCHWc.x86": {
            "records": 321, "rank_correlation": 0.8125, "top_k_recall": 0.625, "regret": 0.03,
        },
        "dense_pack.x86": None,
    },
}  # fmt: skip
OPTIONS = TuneOptions(model="nets/small.onnx", target="x86-64-v3", trials=48, seed=7, tuner="ga")


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return [name for name, _ in self.tags].count(tag)


def written(tmp_path: Path, found: dict[str, Any] = FOUND, options: TuneOptions = OPTIONS) -> Page:
    place = place_for(str(tmp_path / "out.html"), Path(str(options.model)))
    report.write(found, options, place)
    return Page(place.page.read_text())


# -- what the page says --


def test_the_header(tmp_path: Path) -> None:
    text = written(tmp_path).text
    for fact in (
        "Tuning of small.onnx", "40.00 ms before, 20.00 ms after: 2.00 times as fast (1.90 to 2.10)",
        "-mcpu=x86-64-v3", "znver4.avx512.cpu.2t", "TVM 0.19", "ga, seed 7",
        "40 measured now, 8 known before (asked: 48)", "62 s", "tuning_logs, run r1",
    ):  # fmt: skip
        assert fact in text


def test_a_row_per_task(tmp_path: Path) -> None:
    page = written(tmp_path)
    for name in IDS:
        assert name in page.text
    assert "40.0" in page.text  # us before
    assert "20.0" in page.text
    assert "2.00x" in page.text
    assert "100.0" in page.text  # GFLOP/s
    assert "50%" in page.text  # of the peak


def test_failures_and_trust(tmp_path: Path) -> None:
    text = written(tmp_path).text
    assert text.index("crash") < text.index("run timeout")  # the most frequent first
    for figure in ("321", "0.81", "62%", "3%", "too few"):
        assert figure in text


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    old = {k: v for k, v in FOUND.items() if k not in ("trust", "peak_gflops")}
    page = written(tmp_path, {**old, "failures": {}, "model": None})
    assert "cost model" not in page.text
    assert "failed" in page.text  # the column
    assert "Candidates that failed" not in page.text
    assert "Nothing new was chosen" in page.text


def test_a_model_that_was_not_compared(tmp_path: Path) -> None:
    page = written(tmp_path, {**FOUND, "model": None, "not_compared": "the device is <gone>"})
    assert "was not compared end to end: the device is <gone>." in page.text


def test_a_run_that_measured_nothing(tmp_path: Path) -> None:
    assert written(tmp_path, {**FOUND, "curve": FOUND["curve"][:1]}).count("svg") == 1


@pytest.mark.parametrize("tasks", [1, 6, 7, 8])
def test_any_number_of_tasks(tmp_path: Path, tasks: int) -> None:
    points = [{**one, "parts": one["parts"][:tasks]} for one in FOUND["curve"]]
    page = written(tmp_path, {**FOUND, "curve": points, "tasks": FOUND["tasks"][:tasks]})
    assert page.count("svg") == 1


def test_names_of_the_lightest_are_put_together() -> None:
    names, layers = curve._layers(FOUND["curve"], IDS)
    assert names == [*IDS[:6], "3 others"]
    assert layers[-1] == pytest.approx([6.0, 4.2, 3.0])
    totals = [sum(column) for column in zip(*layers, strict=True)]
    assert totals == pytest.approx([one["estimate"] * 1e3 for one in FOUND["curve"]])


# -- one file, and safe --


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert page.count("script") == page.count("img") == page.count("link") == 0
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "xlink:href", "src"):
                assert str(value).startswith("#")
    assert "@import" not in page.text
    assert page.text.count("url(") == 0


EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>$title$ \x1b[31m"


def test_untrusted_text_stays_text(tmp_path: Path) -> None:
    found = {
        **FOUND, "device": EVIL, "logs": EVIL, "run": EVIL, "failures": {EVIL: 1},
        "tasks": [task(k, id=EVIL, shapes=EVIL, checked=EVIL) for k in range(9)],
        "trust": {EVIL: None},
    }  # fmt: skip
    options = TuneOptions(model=f"{EVIL}.onnx", target="x86-64-v3")
    page = written(tmp_path, found, options)
    assert page.count("script") == page.count("img") == 0
    assert page.text.count("<script>alert(1)</script>") >= 9
    assert "\x1b" not in (tmp_path / "out.html").read_text()


def test_equal_reports_are_equal_bytes(tmp_path: Path) -> None:
    written(tmp_path)
    first = [(tmp_path / name).read_bytes() for name in ("out.html", "out.png")]
    written(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("out.html", "out.png")] == first


def test_drawing_leaves_no_trace() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    curve.draw(FOUND["curve"], IDS)
    assert dict(mpl.rcParams) == before


def test_the_picture(tmp_path: Path) -> None:
    written(tmp_path)
    data = (tmp_path / "out.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > height > 500


# -- where it goes --


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("out", "out/net-tuning.html"),
        ("out/", "out/net-tuning.html"),
        ("a/b", "a/b/net-tuning.html"),
        ("out.html", "out.html"),
        ("a/OUT.HTM", "a/OUT.HTM"),
        (".", "net-tuning.html"),
    ],
)
def test_places(tmp_path: Path, text: str, page: str) -> None:
    place = place_for(f"{tmp_path}/{text}", Path("models/net.onnx"))
    assert place.page == tmp_path / page
    assert place.picture == place.page.with_suffix(".png")
    assert place.page.parent.is_dir()


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "one.png").mkdir()
    for text in ("file/out.html", "file", "folder.html", "one.html"):
        with pytest.raises(UsageError, match="cannot write the report"):
            place_for(str(tmp_path / text), Path("net.onnx"))


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    with pytest.raises(MissingToolError) as error:
        place_for(str(tmp_path / "out"), Path("net.onnx"))
    assert "mlc-compiler[report]" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


def test_files_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(page=tmp_path / "out.html", picture=tmp_path / "out.png")
    report.write(FOUND, OPTIONS, place)
    before = place.page.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match="No space left"):
        report.write({**FOUND, "run": "other"}, OPTIONS, place)
    assert place.page.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.png"]
