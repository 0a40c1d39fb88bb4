"""The command's entry: finds the subcommand, loads only that, and turns errors into one line and exit code 2."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

from homojl.version import __version__

# name -> one-line help; the command itself is `command` in homojl_cli/<name>.py
COMMANDS = {
    "train": "Train a model, test it once, and leave a run folder.",
    "compare": "Train several models with one budget, and compare them.",
    "evaluate": "Evaluate a trained run.",
    "predict": "Say what a trained run takes pictures for, with probabilities.",
    "runs": "List the runs in a folder, sorted by any metric.",
    "export": "Write a run's results to one HDF5 file.",
    "plot": "Draw a run's figures.",
    "report": "Write one or several runs as one HTML file.",
    "tune": "Find the cheapest way to solve a trained model as accurately.",
    "bench": "Measure homojl's own solves on this machine, on every backend.",
    "trace": "Follow the zero path of a problem in the gallery to its root.",
    "models": "List the models.",
    "datasets": "List the datasets and where their files are looked for.",
    "julia": "Install Julia and its packages, or say what is there.",
    "info": "Say what is installed here.",
}


class LazyCommands(click.Group):
    """Subcommands that are imported when they are called, so that --help needs neither torch nor Julia."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"homojl_cli.{name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from homojl.names import did_you_mean

            raise click.UsageError(f"unknown command {args[0]!r}; {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyCommands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="homojl")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Implicit deep models on ODE and equilibrium solvers.

    \b
    Examples:
      homojl train                                    HomoODE on the digits
      homojl train --model homoode --dataset svhn     SVHN is downloaded once
      homojl compare --models homoode,deq --epochs 5  a table of both
      homojl evaluate runs/NAME                       accuracy, evaluations
      homojl export runs/NAME --out results.h5        all numbers, for pandas
      homojl report runs/NAME runs/OTHER              one HTML file of both
      homojl predict runs/NAME picture.png            classes, probabilities
      homojl trace --problem arctan                   where Newton's method fails
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run the command line; never returns."""
    debug = "--debug" in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end the work
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(prog_name="homojl", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BrokenPipeError:  # the reader of our output has gone, as in `homojl models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        from homojl.errors import HomoJLError

        if debug or not isinstance(error, HomoJLError | OSError):
            raise
        _fail(str(error), 2)


def _fail(message: str, code: int) -> None:
    from homojl.errors import one_line

    message = " ".join(one_line(message).split())
    print(f"homojl: error: {message}" if code == 2 else f"homojl: {message}", file=sys.stderr)
    sys.exit(code)
