"""The commands `diffalign reward ...`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from diffalign.errors import DiffalignError

app = typer.Typer(help="Rewards: list, check, write and serve them.", no_args_is_help=True)


Target = Annotated[str, typer.Argument(help="a reward: a name, module:NAME or file.py:NAME")]
Arguments = Annotated[list[str] | None, typer.Argument(help="its arguments as key=value")]


@app.command(name="list")
def list_rewards() -> None:
    """What is installed, from where, what it needs and what it can do."""
    from diffalign.commands.catalog import catalog
    from diffalign.commands.reward_text import show_catalog

    show_catalog(catalog())


@app.command()
def check(
    target: Target,
    arguments: Arguments = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="prompts it understands, if not any will do")
    ] = None,
) -> None:
    """Hold a reward to all that a run relies on; exit code 1 if it fails."""
    from diffalign import registry
    from diffalign.authoring.conformance import examine
    from diffalign.authoring.cost import cost
    from diffalign.commands.reward_text import show_findings

    reward = registry.reward(target, **_checked(target, arguments or [], registry.reward_maker))
    found = examine(reward, prompt)
    broken = any(one.verdict == "failed" for one in found)
    show_findings(target, found, None if broken else cost(reward, prompt))
    raise typer.Exit(int(broken))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the reward's name, such as my_sharpness")],
    out: Annotated[Path, typer.Option(help="the folder to make the package's folder in")] = Path(),
) -> None:
    """Write a pip package with one reward, to be changed into your own."""
    from diffalign.authoring.scaffold import create

    folder = create(name, out)
    typer.echo(f"{folder}\nnext: pip install -e {folder}, then diffalign reward check {name}")


@app.command()
def serve(
    name: Target,
    arguments: Arguments = None,
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8420,
    host: Annotated[str, typer.Option(help="anything but this machine needs a token")] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(envvar="DIFFALIGN_REWARD_TOKEN", help="what clients must know")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="such as cuda:1; default: the GPU if there is one")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="pictures of a request, and of a batch")] = 32,
    merge_ms: Annotated[
        float, typer.Option(min=0, help="wait so long to merge requests; 0: never merge")
    ] = 5,
    max_waiting: Annotated[int, typer.Option(min=1, help="requests taken at once; others get 503")] = 16,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="of all pictures of a request")] = 34,
) -> None:
    """Serve a reward over HTTP; in a config, `reward: {url: http://HOST:PORT}` uses it."""
    from diffalign.serving.wire import Limits
    from diffalign.settings.named import picture_reward

    serving = _serving()
    bound = serving.bind(host, port, token)
    total = round(max_megapixels * 1e6)
    server = serving.make(
        name, _checked(name, arguments or [], picture_reward),
        Limits(items=max_batch, total_pixels=total, pixels=min(total, Limits().pixels)),
        token=token, waiting=max_waiting, wait=merge_ms / 1000, device=device,
    )  # fmt: skip
    shown = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
    serving.serve(server, bound, lambda: typer.echo(f"serving {name} at {shown} (Ctrl-C ends it)"))


def _serving() -> ModuleType:
    try:
        from diffalign.serving import serve
    except ModuleNotFoundError as error:
        raise DiffalignError(f"{error}. Serving needs more: pip install 'diffalign[rewards]'.") from error
    return serve


def _checked(name: str, pairs: list[str], find: Callable[[str], Any]) -> dict[str, Any]:
    """The arguments of a reward from key=value pairs; all that is wrong with them in one error."""
    from diffalign.settings.configfile import override
    from diffalign.settings.named import problems

    raw, _ = override({}, {}, [f"of.{pair}" for pair in pairs])
    given: dict[str, Any] = raw.get("of", {})
    if found := problems(name, given, find):
        raise DiffalignError("\n".join(f"{key}: {text}" for key, text in found))
    return given
