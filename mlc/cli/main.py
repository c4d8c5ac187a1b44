"""The `mlc` command: its verbs, loaded when they are used, and the one place that reports errors."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import traceback
from typing import Any

import click

from mlc import __version__
from mlc.errors import Interrupted, MlcError, did_you_mean

# verb: (module, what `mlc --help` says). Modules are imported when the verb is called.
VERBS = {
    "compile": ("mlc.cli.compile", "Compile an ONNX model to one verified artifact."),
    "build": ("mlc.cli.build", "Make the artifacts that mlc.toml asks for: models times targets."),
    "check": ("mlc.cli.check", "Say in a second whether a model would compile, and what it needs."),
    "tune": ("mlc.cli.tune", "Tune a model's subgraphs on this machine; keep every measurement."),
    "rpc": ("mlc.cli.rpc", "Offer machines to `mlc tune` to measure on, and list them."),
    "logs": ("mlc.cli.logs", "List, merge, prune and explain tuning records."),
    "run": ("mlc.cli.run", "Run an artifact on inputs from files."),
    "bench": ("mlc.cli.bench", "Time an artifact, also against ONNX Runtime."),
    "verify": ("mlc.cli.verify", "Compare an artifact with ONNX Runtime on its model."),
    "bisect": ("mlc.cli.bisect", "Narrow a wrong answer to a level, an operator and a pass."),
    "inspect": ("mlc.cli.inspect", "Show what a model or an artifact holds, pass by pass."),
    "targets": ("mlc.cli.targets", "List what can be compiled for."),
    "cache": ("mlc.cli.cache", "Show or clear the cache of compiled kernels."),
    "doctor": ("mlc.cli.doctor", "Check whether this machine is fit to compile and to time."),
    "export": ("mlc.cli.export", "Export a PyTorch module to ONNX (torch extra)."),
}


class Verbs(click.Group):
    """A group whose commands are imported on first use: `mlc --help` loads none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the table."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a verb; an unknown one ends with the choices."""
        if cmd_name not in VERBS:
            ctx.fail(f"no such command {cmd_name!r}; {did_you_mean(cmd_name, VERBS)}")
        command = getattr(importlib.import_module(VERBS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlc")
@click.option("-v", "--verbose", count=True, help="-vv shows tracebacks and compiler output.")
@click.pass_context
def mlc(context: click.Context, verbose: int) -> None:
    """Compile ONNX models to one verified, fast artifact.

    \b
    Start here:
      mlc compile model.onnx --target llvm     writes model.mlc for this CPU, verified
      mlc run model.mlc --input x.npy          runs it
      mlc bench model.mlc --against onnxruntime --model model.onnx

    \b
    Results go to stdout, progress and errors to stderr; --json makes both readable by programs.
    Exit codes: 0 ok, 1 unexpected, 2 usage, 3 model, 4 target, 5 pass or build, 6 tuning,
    7 artifact or run, 8 a tool or package is missing, 9 a gate failed, 130 interrupted.
    """
    context.obj = {"verbose": verbose}


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: the one place that turns errors into text and exit codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        mlc.main(arguments, prog_name="mlc", standalone_mode=False)
        code = 0
    except MlcError as error:
        code = _report(error, arguments)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = _report(Interrupted("interrupted; nothing half-written was left"), arguments)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:  # `mlc ... | head`
        sys.stderr.close()
        code = 0
    except Exception as error:  # noqa: BLE001 - the last resort: no user meets a traceback first
        what = f"unexpected failure: {type(error).__name__}: {error}"
        hint = "this is a bug in mlc; please report it with the output of `-vv`"
        code = _report(MlcError(what, hint, detail=traceback.format_exc()), arguments)
    sys.exit(code)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _report(error: MlcError, arguments: list[str]) -> int:
    loud = sum(a.count("v") for a in arguments if a.strip("v") == "-") + arguments.count(
        "--verbose"
    )
    if loud >= 2 and error.detail:
        click.echo(error.detail, err=True)
    if "--json" in arguments:
        facts = {
            "error": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        click.echo(json.dumps(facts), err=True)
        return error.exit_code
    click.echo(click.style("error: ", fg="red", bold=True) + error.message, err=True)
    if error.hint:
        click.echo(click.style("hint: ", fg="cyan") + error.hint, err=True)
    return error.exit_code
