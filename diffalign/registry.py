"""Names to objects: algorithms, searches, rewards, step rules, packaged configs, and classes of one's own.

Built-in ones resolve by file name; `module:Class` and `file.py:Class` are one's own; the entry points
of the group `diffalign.rewards` are those of other packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from diffalign import plugins
from diffalign.arguments import parameters
from diffalign.errors import DiffalignError, told, unknown
from diffalign.prompts import package_roots

ALIASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {"hpsv2.1": ("hpsv2", {"version": "2.1"})}
"""Rewards under a second name: what they are, with which of the arguments given."""
METHODS = {"__call__", "score_group", "score_set", "score_noisy"}
"""What scores pictures: one by one, those of a prompt together, or all together; or what is still noisy."""


def algorithms() -> list[str]:
    """The built-in algorithms: one file each."""
    return _files("diffalign.algorithms")


def searches() -> list[str]:
    """The built-in search methods: one file each."""
    return _files("diffalign.search")


def rewards() -> list[str]:
    """The built-in rewards, one file each, and those of installed packages."""
    return sorted({*built_in_rewards(), *ALIASES, *plugins.found()})


def built_in_rewards() -> list[str]:
    """The built-in rewards: one file each."""
    return _files("diffalign_rewards")


def rules() -> list[str]:
    """The step rules."""
    from diffalign.steps import RULES

    return sorted(RULES)


def combiners() -> list[str]:
    """The ways to combine rewards."""
    from diffalign.rewarding.compose import COMBINERS

    return sorted(COMBINERS)


def configs() -> dict[str, Path]:
    """name -> file of every packaged config."""
    return {f.stem: f for root in package_roots("diffalign_configs") for f in sorted(root.glob("*.yaml"))}


def search_configs() -> list[str]:
    """The packaged configs of searches; the others are those of training runs."""
    return [name for name, file in configs().items() if re.search(r"^search:", file.read_text("utf-8"), re.M)]


def algorithm(name: str) -> type[Any]:
    """The class of an algorithm; its fields are the hyper-parameters."""
    found = _resolve("algorithm", name, algorithms(), _built_in_algorithm)
    if not (isinstance(found, type) and all(hasattr(found, m) for m in ("collect", "minibatches", "losses"))):
        raise DiffalignError(
            f"{name} is not an algorithm: it needs to be a class with the methods collect, minibatches and "
            "losses (docs/algorithms.md shows one)."
        )
    return found


def search(name: str) -> type[Any]:
    """The class of a search method; its fields are its arguments."""
    from diffalign.search import Search

    found = _resolve("search method", name, searches(), _built_in_search)
    if not (isinstance(found, type) and issubclass(found, Search)):
        raise DiffalignError(
            f"{name} is not a search method: it needs to inherit diffalign.search.Search (docs/search.md shows one)."
        )
    return found


def rule(name: str) -> type[Any]:
    """The class of a step rule."""
    from diffalign.steps import RULES

    if name not in RULES:
        raise unknown("rule", name, RULES)
    return RULES[name]


def combiner(name: str) -> type[Any]:
    """The class of a combiner, built in or one's own; its fields are its arguments."""
    from diffalign.rewarding.combine import Combiner
    from diffalign.rewarding.compose import COMBINERS

    found = _resolve("combiner", name, COMBINERS, COMBINERS.__getitem__)
    if not (isinstance(found, type) and issubclass(found, Combiner)):
        raise DiffalignError(
            f"{name} is not a combiner: it needs to inherit diffalign.rewarding.combine.Combiner."
        )
    return found


def reward(name: str, **arguments: Any) -> Any:
    """A reward, made with its arguments; rewards among them, written as names or with `name`, are made first."""
    return make(name, reward_maker(name), arguments)


def make(name: str, maker: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a class or a maker, with what it takes of rewards and searches made first.

    An error of its own code becomes one that says what could not be made.
    """
    known = parameters(maker)
    made = {key: _inner(known[key], value) if key in known else value for key, value in arguments.items()}
    with _code_of(repr(name), "made"):
        return maker(**made)


def _inner(parameter: inspect.Parameter, spec: Any) -> Any:
    find = reward_maker if takes_reward(parameter) else search if takes_search(parameter) else None
    match spec:
        case str() if find:
            return make(spec, find(spec), {})
        case {"name": str(name)} if find:
            return make(name, find(name), {key: value for key, value in spec.items() if key != "name"})
    return spec


def takes_reward(parameter: inspect.Parameter) -> bool:
    """Whether a constructor's parameter is annotated exactly `Reward`."""
    from diffalign.reward import Reward

    return parameter.annotation is Reward or parameter.annotation == "Reward"


def takes_search(parameter: inspect.Parameter) -> bool:
    """Whether a constructor's parameter is annotated exactly `Search`."""
    named = parameter.annotation
    return "Search" in (named, getattr(named, "__name__", None))


def reward_maker(name: str) -> Callable[..., Any]:
    """What makes a reward: a class, or a plain function to which arguments are bound."""
    if name in ALIASES:
        real, given = ALIASES[name]
        return _given(reward_maker(real), given)
    found = reward_class(name)
    if isinstance(found, type) and not any(METHODS & vars(parent).keys() for parent in found.__mro__):
        raise DiffalignError(f"{name} is not a reward: its class needs a method __call__(images, prompts).")
    return found if isinstance(found, type) else _binder(found)


def reward_class(name: str) -> Any:
    """The class or function itself, which declares what it can do."""
    return _resolve("reward", ALIASES.get(name, (name,))[0], rewards(), _installed_reward)


def _given(maker: Callable[..., Any], given: Mapping[str, Any]) -> Callable[..., Any]:
    """The maker with some arguments given, which nobody can change."""

    def bind(**arguments: Any) -> Any:
        return maker(**given, **arguments)

    free = [p for p in parameters(maker).values() if p.name not in given]
    bind.__signature__ = inspect.Signature(free)  # type: ignore[attr-defined]
    return bind


def _binder(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function reward: everything after (images, prompts) can be bound."""
    if not callable(function):
        raise DiffalignError(f"a reward is a class or a function, not {function!r}.")
    free = [p for p in list(parameters(function).values())[2:] if p.kind is not p.VAR_KEYWORD]

    def bind(**arguments: Any) -> Callable[..., Any]:
        return partial(function, **arguments) if arguments else function

    named = [p.replace(kind=p.KEYWORD_ONLY) for p in free]
    bind.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return bind


def _resolve(kind: str, name: str, built_in: Iterable[str], load: Callable[[str], Any]) -> Any:
    if ":" in name:
        return _own(kind, name)
    if name not in built_in:
        raise unknown(kind, name, [*built_in, "module:NAME", "file.py:NAME"])
    return load(name)


def _own(kind: str, name: str) -> Any:
    """`module:Name` or `path/file.py:Name`; the current folder is searched as `python -m` would."""
    where, _, attribute = name.rpartition(":")
    module = _run_file(kind, Path(where)) if where.endswith(".py") else _import(kind, where)
    if not hasattr(module, attribute):
        public = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise unknown(f"{kind} in {where}", attribute, public)
    return getattr(module, attribute)


def _import(kind: str, name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with _code_of(
        f"{kind} module {name!r}",
        "imported",
        f" It was looked for from {Path.cwd()}; path/to/file.py:NAME works as well.",
    ):
        return importlib.import_module(name)


def _run_file(kind: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise DiffalignError(f"the file {path} does not exist (looked in {Path.cwd()}).")
    name = f"diffalign_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with _code_of(f"{kind} file {path}", "imported"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _code_of(what: str, done: str, hint: str = "") -> Iterator[None]:
    """Around code that is not ours: what goes wrong in it is said without a traceback of ours."""
    try:
        yield
    except DiffalignError:
        raise
    except Exception as error:
        raise DiffalignError(f"{what} could not be {done}: {told(error)}.{hint}") from error


def _files(package: str) -> list[str]:
    found = [f.stem for root in package_roots(package) for f in root.glob("*.py")]
    return sorted(stem for stem in found if not stem.startswith("_"))


def _built_in_algorithm(name: str) -> Any:
    """The one public class with `losses` that the file defines."""
    return _the_class("diffalign.algorithms", name, "losses")


def _built_in_search(name: str) -> Any:
    """The one public class with `search` that the file defines."""
    return _the_class("diffalign.search", name, "search")


def _the_class(package: str, name: str, method: str) -> Any:
    module = importlib.import_module(f"{package}.{name}")
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    (found,) = (c for c in classes if hasattr(c, method) and not c.__name__.startswith("_"))
    return found


def _installed_reward(name: str) -> Any:
    """What carries the file's name, a function `jpeg_size` or a class `JpegSize`, or what a package offers."""
    built_in = name in built_in_rewards()
    if offers := plugins.found().get(name):
        return plugins.load(name, offers, built_in)
    module = importlib.import_module(f"diffalign_rewards.{name}")
    spellings = {n.lower(): value for n, value in vars(module).items()}
    return getattr(module, name, None) or spellings[name.replace("_", "")]
