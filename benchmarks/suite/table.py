"""The results as a table: on a terminal, or in Markdown for the README."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.suite import stats
from benchmarks.suite.peers import OURS, PEERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Result = dict[str, Any]
NONE = "-"


def headings(peers: Sequence[str]) -> list[str]:
    """Return the columns' names."""
    return [
        "model",
        "mlc, ms",
        *(f"{PEERS[name].title}, ms" for name in peers),
        "best peer / mlc",
        "fastest",
        "of the fp32 limit",
        "peak MB, mlc / ORT",
        "MB, artifact / ONNX",
    ]


def rows(results: Sequence[Result], peers: Sequence[str]) -> list[list[str]]:
    """Return a row per model, and one of geometric means: in a peer's column its time over mlc's."""
    limit = stats.limit(results)
    table = [_row(result, peers, limit) for result in results]
    best = [found[name].median for found, name in _best(results)]
    per_peer = [
        [found[name].median for found in map(stats.ratios, results) if name in found]
        for name in peers
    ]
    empty = [""] * (len(headings(peers)) - 3 - len(peers))
    means = [_mean(values, len(results)) for values in per_peer]
    return [*table, ["geometric mean / mlc", "1", *means, _mean(best, len(results)), *empty]]


def markdown(results: Sequence[Result], peers: Sequence[str]) -> str:
    """Return the table and its caption in Markdown."""
    head = headings(peers)
    lines = [head, ["---"] * len(head), *rows(results, peers)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{caption(results)}"


def caption(results: Sequence[Result]) -> str:
    """Return where and how it was measured, and what makes the figures worthless."""
    facts = results[0]["facts"]
    versions = ", ".join(f"{PEERS[name].title} {text}" for name, text in facts["versions"].items())
    tuned = f"after {facts['trials']} trials" if facts["trials"] else "untuned"
    lines = [
        f"{facts['cpu']}, {facts['threads']} threads, float32; mlc {tuned}, target {facts['target']}.",
        f"{versions}.",
        *(
            ["OpenVINO and torch are held to AVX2; ONNX Runtime cannot be."]
            if facts["avx2"]
            else []
        ),
        f"Medians over {facts['rounds']} blocks of {facts['seconds']:g} s.",
        "The ratio (above 1: mlc is faster) is taken round by round, 5th to 95th percentile beside it.",
    ]
    if limit := stats.limit(results):
        lines.append(
            f"The fp32 limit measured here is {limit:.0f} GFLOP/s; Winograd's convolutions count as "
            "direct ones, so that a share may pass 100 %."
        )
    chosen = {
        f"{result['name']}: {entrant['settings']}"
        for result in results
        for entrant in result["entrants"].values()
        if entrant.get("settings", "default") not in {"", "default"}
    }
    if chosen:
        lines.append(f"Inductor's settings other than the default: {', '.join(sorted(chosen))}.")
    if any(map(stats.disturbed, results)):
        lines.append(
            "Rows with * are NOT TO BE QUOTED: threads waited for a core, or idle ones kept one busy."
        )
    return " ".join(lines)


def _row(result: Result, peers: Sequence[str], limit: float | None) -> list[str]:
    blocks = stats.timed(result)
    found, best = stats.ratios(result), stats.best_peer(result)
    name = result["name"] + (" *" if stats.disturbed(result) else "")
    return [
        name,
        _ms(blocks[OURS]),
        *(_cell(result, blocks, peer) for peer in peers),
        _span(found[best]) if best else NONE,
        _fastest(found[best], best) if best else NONE,
        f"{stats.share_of_limit(result, limit):.0%}" if limit else NONE,
        " / ".join(_memory(result, peer) for peer in (OURS, "ort")),
        f"{result['artifact_bytes'] / 1e6:.1f} / {result['onnx_bytes'] / 1e6:.1f}",
    ]


def _best(results: Sequence[Result]) -> list[tuple[Mapping[str, stats.Ratio], str]]:
    pairs = [(stats.ratios(result), stats.best_peer(result)) for result in results]
    return [(found, best) for found, best in pairs if best is not None]


def _cell(result: Result, blocks: Mapping[str, list[float]], peer: str) -> str:
    if peer in blocks:
        return _ms(blocks[peer])
    return "failed" if "failed" in result["entrants"].get(peer, {}) else NONE


def _fastest(ratio: stats.Ratio, best: str) -> str:
    if not ratio.clear:
        return f"mlc or {PEERS[best].title}"
    return "mlc" if ratio.low > 1 else PEERS[best].title


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.3g}"


def _span(ratio: stats.Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _mean(values: Sequence[float], models: int) -> str:
    mean = stats.geometric_mean(values)
    if mean is None:
        return NONE
    return f"{mean:.2f}" + (f" ({len(values)} of {models})" if len(values) < models else "")


def _memory(result: Result, peer: str) -> str:
    rss = result["entrants"].get(peer, {}).get("rss")
    return f"{rss / 1e6:.0f}" if rss else NONE
