"""homojl julia"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import click


@click.group("julia", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Install Julia and its packages, or say what is there.

    \b
    Examples:
      homojl julia install
      homojl julia status
      homojl julia add OrdinaryDiffEqFIRK
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@command.command("install")
@click.option("--cuda", is_flag=True, help="Also CUDA.jl, for solves on an NVIDIA GPU.")
def install(cuda: bool) -> None:
    """Install Julia and the packages that are missing, then solve something to see that all works.

    Uses the network once, the first time for several minutes; what is there already is kept.
    """
    from homojl.backends.julia import runtime
    from homojl.backends.julia.selftest import self_test

    runtime.install(click.echo, cuda=cuda)
    _run(self_test)


@command.command("add")
@click.argument("package")
@click.option(
    "--uuid", default="", help="Its identity in Julia's registry; only for packages that homojl does not know."
)
def add(package: str, uuid: str) -> None:
    """Add a Julia package, whose algorithms can then be used by name: hj.SciML("RadauIIA5"). Uses the network."""
    from homojl.backends.julia import runtime

    runtime.add(package, click.echo, uuid=uuid)


@command.command("status")
@click.option("--no-start", is_flag=True, help="Only look at files; do not start Julia.")
def status(no_start: bool) -> None:
    """Say what is there, what is missing, and what to run next. Exits with 1 if Julia cannot be used."""
    from homojl.backends.julia import runtime

    found = runtime.find()
    click.echo(f"Julia        {found.version or 'not found'}" + (f"  {found.executable}" * bool(found.executable)))
    click.echo(f"environment  {found.project or 'none'}")
    for name in runtime.PACKAGES if found.executable else ():
        absent = "not installed" + (" (optional)" if name in runtime.OPTIONAL else "")
        click.echo(f"  {name:<24} {found.packages.get(name, absent)}")
    if found.problem:
        click.echo(f"not usable: {found.problem}; {runtime.MEANWHILE}")
        sys.exit(1)
    if not no_start:
        julia = runtime.start()
        click.echo(f"threads      {julia.jl.Base.Threads.nthreads()}")
        click.echo(f"CUDA         {runtime.cuda_state(julia)}")
    if found.missing:
        click.echo(f"missing: {', '.join(found.missing)}; {runtime.advice(*found.missing)}")
        sys.exit(1)
    click.echo("usable: pass --backend julia, or leave it at auto")


def _run(self_test: Callable[[], Iterator[tuple[str, float]]]) -> None:
    for name, seconds in self_test():
        click.echo(f"  {name:<44} {seconds:6.2f} s")
    click.echo("Julia works: pass --backend julia, or leave it at auto")
