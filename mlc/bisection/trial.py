"""One candidate: compiled, run, compared with ONNX Runtime, in a fork of this process."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import isolate
from mlc.errors import ArtifactError, BuildError, ModelError, RunError, UsageError
from mlc.events import OnEvent, Stage
from mlc.options import CompileOptions, VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

OK, MISMATCH, FAILURE, REFUSED = "ok", "mismatch", "failure", "refused"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a candidate.

    `kind` is OK, MISMATCH (`wrong` names the outputs), FAILURE (the compiler or the compiled code
    failed or crashed) or REFUSED (the model cannot be imported: `error`); `message` says more.
    """

    kind: str
    message: str = ""
    wrong: tuple[str, ...] = ()
    error: ModelError | None = None


def run(options: CompileOptions, inputs: Path | None, on_event: OnEvent) -> dict[str, Any]:
    """Compile to `options.output`, then verify on `inputs` (None: seeded random ones).

    Returns `Verification.to_json()` and, as `text`, the figures of the outputs that are wrong.

    Raises:
        UsageError: this machine cannot run code for the target.
        MlcError: the candidate cannot be compiled or run.
    """
    from mlc import artifact, driver
    from mlc.runtime.verify import verify

    output = Path(str(options.output))
    contents = driver.build_only(options, on_event).contents
    check_fit(contents.manifest["target"])
    artifact.save(contents, output)
    del contents
    asked = VerifyOptions(
        artifact=str(output),
        model=options.model,
        seed=options.seed,
        inputs=(str(inputs),) if inputs else (),
    )
    result = verify(asked, same_model=True)
    text = "\n".join(str(check) for check in result.outputs if not check.passed)
    return {**result.to_json(), "text": text}


def check_fit(target: Mapping[str, Any]) -> None:
    """Raise UsageError if this machine cannot run code for a manifest's target."""
    from mlc.cpu import host_cpu
    from mlc.fit import misfit

    why = misfit(target, host_cpu())
    if why:
        raise UsageError(f"this machine cannot run the candidates: {why}", "leave out --target")


class Trials:
    """Runs candidates of one bisection, counts them, and reports each as a stage."""

    def __init__(self, options: CompileOptions, folder: Path, on_event: OnEvent):
        self.options = replace(options, output=str(folder / "trial.mlc"), verify=False)
        self.on_event = on_event
        self.count = 0

    def __call__(
        self,
        what: str,
        *,
        model: Path | None = None,
        inputs: Path | None = None,
        level: int | None = None,
        without: tuple[str, ...] = (),
    ) -> Outcome:
        """Return what becomes of a candidate; `what` describes it in the progress.

        Without `model` it is the user's, with the shapes and open dimensions that were asked for.

        Raises:
            MlcError: what no candidate can be blamed for: options, target, tools, an interrupt.
        """
        options = self.options
        if model is not None:
            options = replace(options, model=str(model), shapes=(), dynamic=())
        if level is not None:
            options = replace(options, opt_level=level)
        work = partial(run, replace(options, without=without), inputs)
        self.count += 1
        started = time.perf_counter()
        outcome = _outcome(work)
        note = f"{what}: {outcome.kind}"
        self.on_event(Stage(name="trial", seconds=time.perf_counter() - started, note=note))
        return outcome


def _outcome(work: isolate.Work) -> Outcome:
    try:
        answer = isolate.forked(work)
    except (BuildError, RunError, ArtifactError) as error:
        return Outcome(kind=FAILURE, message=error.message)
    except ModelError as error:
        return Outcome(kind=REFUSED, message=error.message, error=error)
    if answer["passed"]:
        return Outcome(kind=OK)
    wrong = tuple(check["name"] for check in answer["outputs"] if not check["passed"])
    return Outcome(kind=MISMATCH, message=answer["text"], wrong=wrong)
