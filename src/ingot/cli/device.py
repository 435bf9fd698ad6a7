"""`ingot tune` and `ingot key`: engines that travel to the GPU they run on, and who may bring code there."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ingot.cli.commands import EnginePath, Json, app, tell
from ingot.compiler.gpu import tune_engine
from ingot.engine import read_engine, write_engine
from ingot.engine.signing import Key, distrust_key, keys, new_key, trust_key
from ingot.env import keys_folder
from ingot.report import ProgressBar, Table, nbytes_text
from ingot.verify import Verdict

key_app = typer.Typer(name="key", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
                      help="Keys that sign the device code engines carry, and those trusted here.",
                      context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(key_app)


@app.command("tune")
def tune_command(
    engine: EnginePath,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="where to write the tuned engine; default: over the old one")] = None,
    budget: Annotated[float | None, typer.Option("--budget", min=0, metavar="SECONDS",
                                                 help="stop after this many seconds, best so far")] = None,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="compare the engine with its model")] = True,
    trust: Annotated[bool, typer.Option("--trust", help="run carried code whoever signed it, or nobody")] = False,
    as_json: Json = False,
) -> None:
    """Race the kernels an engine carries on the GPU here; needs no compiler and no network.

    Example: ingot tune model.ingot
    """
    loaded = read_engine(engine)
    with ProgressBar(quiet=as_json) as progress:
        made = tune_engine(loaded, trust=trust, budget=budget, progress=progress, check=check)
    target = output or engine
    write_engine(made.engine, target)
    tuned = made.tuning
    verdict = Verdict.from_json(made.engine.verdict) if made.engine.verdict else None
    tell({"engine": str(target), "raced": tuned.raced, "cached": tuned.cached, "untuned": tuned.untuned,
          "seconds": tuned.seconds, "verdict": dict(made.engine.verdict)} if as_json else None,
         f"{tuned.raced} sites raced, {tuned.cached} known from the cache, {tuned.untuned} untuned",
         verdict or "not verified: --no-verify was given",
         f"{target}: {nbytes_text(target.stat().st_size)}, tuned in {tuned.seconds:.1f} s")


def _table(found: tuple[Key, ...]) -> Table:
    return Table("Keys", ("name", "public key", "signs"), tuple(
        (k.name, k.public, "yes" if k.private else "no") for k in found))


@key_app.command("new")
def new_command(name: Annotated[str, typer.Argument(help="what to call it")] = "own", as_json: Json = False) -> None:
    """Make a key; builds sign the code they carry with it, and code signed with it is trusted here.

    Example: ingot key new
    """
    made = new_key(keys_folder(), name)
    tell({"name": made.name, "public": made.public} if as_json else None,
         f"key {made.name}: {made.public}", "on the machines that shall trust it: ingot key trust "
         f"{made.public} --name {made.name}")


@key_app.command("trust")
def trust_command(
    public: Annotated[str, typer.Argument(metavar="KEY|FILE.pub", help="64 hex digits, or a file that holds them")],
    name: Annotated[str, typer.Option("--name", help="what to call it here")] = "other",
    as_json: Json = False,
) -> None:
    """Trust the device code of engines signed with a key.

    Example: ingot key trust builder.pub --name builder
    """
    made = trust_key(keys_folder(), public, name)
    tell({"name": made.name, "public": made.public} if as_json else None, f"trusted: {made.name} {made.public}")


@key_app.command("list")
def list_command(as_json: Json = False) -> None:
    """Show the keys trusted here, and which of them can sign.

    Example: ingot key list
    """
    table = _table(keys(keys_folder()))
    tell({"keys": table.to_json()} if as_json else None, table if table.rows else "no keys")


@key_app.command("remove")
def remove_command(name: Annotated[str, typer.Argument(help="the key's name here")], as_json: Json = False) -> None:
    """Forget a key: what it signed is no longer trusted here, and nothing is signed with it.

    Example: ingot key remove builder
    """
    distrust_key(keys_folder(), name)
    tell({"removed": name} if as_json else None, f"removed: {name}")
