"""The command line. What a command needs is imported when it runs, so that --help answers at once."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from diffalign import __version__
from diffalign.commands import cli_reward, cli_votes
from diffalign.errors import DiffalignError, unknown
from diffalign.ranks import is_main

app = typer.Typer(
    help="Aligns diffusion and flow models with rewards: any diffusers pipeline as a policy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_reward.app, name="reward")
app.add_typer(cli_votes.app, name="votes")

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value pairs, such as lr=1e-4 algorithm.beta=0.5")
]


def run() -> None:
    """The command line with its exit codes: 2 for bad input, 3 for a fault while running."""
    try:
        app()
    except DiffalignError as error:
        if is_main():
            typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def train(
    config: Annotated[
        str | None, typer.Argument(help="a packaged config (see `list`) or a YAML file")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="the run's folder; default runs/CONFIG")] = None,
    resume: Annotated[str | None, typer.Option(help="go on with the run in this folder")] = None,
) -> None:
    """Train as CONFIG says; leaves a folder with metrics, samples, a LoRA and a report."""
    from diffalign.launching import launch

    if config and "=" in config:  # `train --resume RUN key=value`: the config is the run's own
        overrides, config = [config, *(overrides or [])], None
    try:
        report = launch.train(config, overrides or [], out, resume, _say)
    except KeyboardInterrupt:  # launch.train has said how to go on
        raise typer.Exit(130) from None
    _say(f"report: {report}")


@app.command()
def search(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[METHOD] [CONFIG] [KEY=VALUE]...",
            help="a search method, a packaged config (see `list`) or a YAML file, and key=value pairs",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="instead of a config's: a folder, a hub id, emoji")
    ] = None,
    reward: Annotated[
        list[str] | None, typer.Option(help="as in `score`; may be given several times")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="what to draw; may be given several times")] = None,
    prompts: Annotated[str | None, typer.Option(help="a packaged list, .txt, .jsonl or hf:DATASET")] = None,
    adapter: Annotated[str | None, typer.Option(help="a run's folder, or one with LoRA weights")] = None,
    out: Annotated[str | None, typer.Option(help="the folder; default searches/CONFIG or METHOD")] = None,
    resume: Annotated[str | None, typer.Option(help="go on with the search in this folder")] = None,
) -> None:
    """Search for the best pictures of prompts; leaves a folder with pictures, their noise and a gallery."""
    from diffalign.launching import launch_search
    from diffalign.settings import rewardarg
    from diffalign.settings.searchwords import Asked

    if prompt and prompts:
        raise DiffalignError("--prompt and --prompts are both given; keep one.")
    given = {
        "model": model, "rewards": rewardarg.forms(reward or []), "prompts": prompt or prompts, "adapter": adapter,
    }  # fmt: skip
    asked = Asked.of(words or [], {key: value for key, value in given.items() if value})
    try:
        page = launch_search.search(asked, out, resume, _say)
    except KeyboardInterrupt:  # launch_search.search has said how to go on
        raise typer.Exit(130) from None
    _say(f"gallery: {page}")


@app.command()
def sample(
    run: Annotated[str, typer.Argument(help="a run's folder")],
    prompt: Annotated[list[str], typer.Option(help="what to draw; may be given several times")],
    out: Annotated[Path, typer.Option(help="the picture, or the stem of several")],
    seed: Annotated[int, typer.Option(help="equal seeds give equal starting noise")] = 0,
    base: Annotated[bool, typer.Option("--base", help="the model as it was before the run")] = False,
    best: Annotated[bool, typer.Option("--best", help="the weights of the best evaluation")] = False,
) -> None:
    """Draw pictures with a run's model."""
    from diffalign.launching import launch

    if base and best:
        raise DiffalignError("--base and --best are two different models; give one of them.")
    for path in launch.sample(run, prompt, out, seed, base=base, best=best):
        typer.echo(path)


@app.command()
def score(
    pictures: Annotated[list[Path] | None, typer.Argument(help="pictures, videos, folders of them")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="one for all, or one for each in order")] = None,
    prompts: Annotated[Path | None, typer.Option(help="a .csv or .jsonl with file and prompt")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, NAME:key=value,key=value, {name: ...} as in a config, or FILE.yaml of these"
        ),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv or json")] = "table",
    out: Annotated[Path | None, typer.Option(help="write there instead of on the screen")] = None,
    batch: Annotated[int, typer.Option(min=1, help="pictures scored at once")] = 16,
) -> None:
    """Score pictures and videos with any rewards; exit code 2 if some could not be read."""
    from diffalign.commands import score_text

    unreadable = score_text.run(pictures or [], prompt or [], prompts, reward or [], form, out, batch)
    for message in unreadable:
        typer.secho(f"error: {message}", err=True, fg="red")
    raise typer.Exit(2 if unreadable else 0)


@app.command()
def doctor(
    target: Annotated[
        str, typer.Argument(help="a model (folder or hub id), a packaged config or a YAML file")
    ],
    overrides: Overrides = None,
) -> None:
    """Check a model before a run: what is captured, how exact it is, how long a run takes."""
    from diffalign.commands import doctor as checks
    from diffalign.commands.doctor_text import show

    show(checks.examine(checks.settings(target, overrides or [])))


@app.command(name="list")
def list_everything() -> None:
    """Packaged configs, algorithms, search methods, rewards, step rules and prompt lists."""
    from rich import print as show

    from diffalign import prompts, registry

    for title, names in (
        ("configs", registry.configs()),
        ("algorithms", registry.algorithms()),
        ("search methods", registry.searches()),
        ("rewards", registry.rewards()),
        ("ways to combine rewards", registry.combiners()),
        ("rules", registry.rules()),
        ("prompt lists", prompts.packaged()),
    ):
        show(f"[bold]{title}[/bold]\n  " + "\n  ".join(names))


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Option(help="a folder, a hub id or emoji; default the config's")
    ] = None,
    votes: Annotated[str, typer.Option(help="the store: a file, or a URL of PostgreSQL")] = "votes.db",
    pictures: Annotated[
        str | None, typer.Option(help="the folder of its pictures, beside PostgreSQL")
    ] = None,
    host: Annotated[
        str, typer.Option(help="anything but this machine's own address needs --auth")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    auth: Annotated[Path | None, typer.Option(help="users and passwords, made by `demo-user`")] = None,
    training: Annotated[bool, typer.Option(help="whether the app may train")] = True,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="a model, a run's folder or a LoRA to compare; may be given several times"),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=2, help="pictures drawn for a pair, the two most different of which are shown")
    ] = 8,
    config: Annotated[str, typer.Option(help="how pictures are drawn: a training config")] = (
        "emoji-d3po-votes"
    ),
    train: Annotated[
        str | None,
        typer.Option(help="what Align runs instead of the config: CONFIG KEY=VALUE, {votes} is the store"),
    ] = None,
    runs: Annotated[
        Path,
        typer.Option(help="where the runs go; the app goes on with the newest that learned from these votes"),
    ] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="leave out what was learned before")] = False,
) -> None:
    """Open the app: compare pictures, train from the votes, rank, search, judge models."""
    _need_gradio()
    from diffalign_demo.app.options import Options
    from diffalign_demo.app.server import serve

    serve(
        Options(
            model=model, votes=votes, pictures=pictures, host=host, port=port, auth=auth, training=training,
            judges=tuple(judge or ()), candidates=candidates, config=config, train=train, runs=runs,
            fresh=fresh,
        ),
        _say,
    )  # fmt: skip


@app.command()
def demo_user(
    name: Annotated[str, typer.Argument(help="who may log in")],
    auth: Annotated[Path, typer.Option(help="the file of users; made where it is missing")],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)],
) -> None:
    """Add a user of the app, or change the password; only its Argon2 hash is kept."""
    _need_gradio()
    from diffalign_demo.app.members import add_user

    add_user(auth, name, password)
    _say(f"{name} may log in now: diffalign demo --auth {auth}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="a run's folder, or one with LoRA weights")],
    out: Annotated[Path, typer.Option(help="the file, for ComfyUI's folder models/loras")],
) -> None:
    """Write a trained LoRA in the key layout that ComfyUI reads."""
    from diffalign.models import comfy

    typer.echo(comfy.export(folder / "lora" if (folder / "lora").is_dir() else folder, out))


@app.command()
def copy(
    name: Annotated[str, typer.Argument(help="a packaged config or prompt list")],
    destination: Annotated[Path, typer.Argument(help="a folder or a file")],
) -> None:
    """Copy a packaged config or prompt list, to edit it."""
    from diffalign import prompts, registry

    files = {**prompts.packaged(), **registry.configs()}
    if name not in files:
        raise unknown("config or prompt list", name, files)
    target = destination / (name + files[name].suffix) if destination.is_dir() else destination
    if target.exists():
        raise DiffalignError(f"{target} exists already; it was left as it is. Give another name.")
    if not target.parent.is_dir():
        raise DiffalignError(f"the folder {target.parent} does not exist; make it first.")
    shutil.copyfile(files[name], target)
    typer.echo(target)


def _need_gradio() -> None:
    missing = [name for name in ("gradio", "argon2", "itsdangerous") if find_spec(name) is None]
    if missing:
        raise DiffalignError(f"the app needs {', '.join(missing)}: pip install 'diffalign[demo]'.")


def _say(text: str) -> None:
    if is_main():
        typer.echo(text)
