"""What torch says while it works: prints, log lines and warnings kept off stdout, errors in short."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import tempfile
import warnings
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def stdout_to(stream: TextIO, descriptor: int) -> Iterator[None]:
    """Send stdout to `stream`, and what native code writes there to `descriptor`."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(descriptor, 1)
        with contextlib.redirect_stdout(stream):
            yield
    finally:
        libc.fflush(None)
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def captured() -> Iterator[tuple[TextIO, list[warnings.WarningMessage]]]:
    """Collect what is printed and warned; silence the loggers of torch and onnxscript."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as chatter,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("default")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            with stdout_to(chatter, chatter.fileno()), contextlib.redirect_stderr(chatter):
                yield chatter, caught
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def reason(err: BaseException) -> str:
    """Return one line: the first of the error at the root, which torch wraps in pages of advice."""
    while err.__cause__ is not None:
        err = err.__cause__
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    text = f"{type(err).__name__}: {lines[0]}" if lines else type(err).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def interrupted(err: BaseException | None) -> bool:
    """Say whether Ctrl-C is behind `err`: torch's handlers can fail on it with another error."""
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        if isinstance(err, KeyboardInterrupt):
            return True
        seen.add(id(err))
        err = err.__cause__ or err.__context__
    return False
