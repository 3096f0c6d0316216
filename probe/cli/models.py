"""The names that models have, what each stands for, and the models that are on this machine: `probe models`.

Nothing is loaded, and the hub is not asked.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from huggingface_hub import constants

from probe import display
from probe.analysis import command, parsing
from probe.errors import InputError
from probe.model import cache, sources
from probe.model.names import DEFAULT_MODEL

State = Literal["here", "in part", "not here"]


@dataclass(frozen=True)
class Entry:
    """A name that `load_model` and `--model` understand.

    Attributes:
        name: The alias, or the hub id of a model in the local cache that has none.
        kind: "package": an installed Python package carries it; "shipped": it comes with probe; "hub": a hub id.
        means: The package's file, the folder, or the hub id.
        weights: What a report says about the weights.
        state: "here"; "in part": something of it is in the hub cache, but not all that loading needs; "not here".
        bytes: On the disk, every revision that is cached; None where there is nothing.
        install: How to get what does not come by itself.
    """

    name: str
    kind: Literal["package", "shipped", "hub"]
    means: str
    weights: str
    state: State
    bytes: int | None
    install: str | None = None


@dataclass(frozen=True)
class Options:
    """The names of models, what each stands for, and whether the model is on this machine.

    A directory or a .gguf file works as a name, too, and so does every id of a model on the hub.
    """

    examples: ClassVar[Mapping[str, str]] = {
        "": "the default model, those that ship, probe's aliases, and what is in the hub cache",
        "--all": "TransformerLens's aliases as well",
        "--json": "the same for a program",
        "--check gpt2": "what works on one model, by which method",
        "--cache show": "the weights that were made of GGUF files and are kept, and the room that they take",
    }

    all: bool = False
    """Also the aliases of TransformerLens."""
    json: bool = False
    """A JSON list instead of a table."""
    check: str | None = None
    """A name, directory or .gguf file: load it, try a block of each kind, and say what works and what is left out."""
    trust_remote_code: bool = False
    """Run the code that comes with the model that is checked."""
    cache: Literal["show", "clear"] | None = None
    """Show the weights that were made of GGUF files and are kept (in $PROBE_CACHE), or remove them."""


def entries(*, every: bool = False) -> list[Entry]:
    """Look up what there is.

    Args:
        every: Also the aliases of TransformerLens.

    Returns:
        The default model first, then what needs no hub, the aliases, and hub ids in the cache that have no alias.
    """
    aliases = sources.hub_aliases() if every else sources.ALIASES
    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    cached = {folder.name.removeprefix("models--").replace("--", "/") for folder in folders}
    unnamed = sorted(filter(sources.looks_like_hub_id, cached - set(aliases.values())))
    return [
        *(_packaged(name, package) for name, package in sources.PACKAGES.items()),
        *(_shipped(name) for name in sources.bundled()),
        *(_on_hub(alias, identity) for alias, identity in aliases.items()),
        *(_on_hub(identity, identity) for identity in unnamed),
    ]


def main(argv: Sequence[str] | None = None, *, program: str = "probe models") -> int:
    """Run the command line of `probe models`.

    Args:
        argv: Arguments; those of this process by default.
        program: The words that were typed before the arguments.

    Returns:
        Exit status.
    """

    def work() -> None:
        options = parsing.parse(Options, program, argv)
        if options.check is not None:
            from probe.cli.check import checked

            outcome = checked(options.check, trust_remote_code=options.trust_remote_code)
            text = json.dumps(asdict(outcome), indent=1, ensure_ascii=False) if options.json else str(outcome)
            sys.stdout.write(f"{text}\n")
            return
        if options.cache is not None:
            _keep_house(options)
            return
        found = entries(every=options.all)
        if options.json:
            sys.stdout.write(json.dumps([asdict(entry) for entry in found], indent=1, ensure_ascii=False) + "\n")
        else:
            _show(found)

    return command.exit_status(work, program, Options)


def _keep_house(options: Options) -> None:
    from rich.table import Table
    from rich.text import Text

    if options.cache == "clear":
        freed = cache.clear()
        sys.stdout.write(f"removed {display.size(freed)} from {cache.folder()}\n")
        return
    kept = [{"made_from": entry.made_from, "bytes": entry.bytes, "path": str(entry.path)} for entry in cache.entries()]
    if options.json:
        sys.stdout.write(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        return
    if not kept:
        sys.stdout.write(f"the cache in {cache.folder()} is empty\n")
        return
    table = Table(caption=f"in {cache.folder()}, of {display.size(cache.limit())} at most", caption_justify="left")
    table.add_column("made from", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for entry in kept:
        table.add_row(Text(str(entry["made_from"])), display.size(int(str(entry["bytes"]))))
    display.show(table, sys.stdout)


def _show(found: Sequence[Entry]) -> None:
    from rich.table import Table
    from rich.text import Text

    works = "a directory, a .gguf file or any hub id works, too; --all lists more aliases"
    table = Table(caption=works, caption_justify="left")
    for column in ("name", "stands for", "weights", "on this machine"):
        table.add_column(column, overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    styles = {"here": "green", "in part": "yellow", "not here": "dim"}
    for entry in found:
        name = entry.name + (" (default)" if entry.name == DEFAULT_MODEL else "")
        state = entry.state if entry.state == "here" or entry.install is None else f"{entry.state}: {entry.install}"
        size = "" if entry.bytes is None else display.size(entry.bytes)
        cells = (name, entry.means, entry.weights, Text(state, styles[entry.state]), size)
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))  # names are no markup
    display.show(table, sys.stdout)


def _packaged(name: str, package: sources.Package) -> Entry:
    means = f"{package.file} of the package {package.package}"
    try:
        path = Path(sources.resolve(name).location)
    except InputError:
        return Entry(name, "package", means, package.description, "not here", None, package.install)
    return Entry(name, "package", means, package.description, "here", path.stat().st_size)


def _shipped(name: str) -> Entry:
    source = sources.resolve(name)
    size = sum(dict(_files(Path(source.location))).values())
    return Entry(name, "shipped", source.location, source.description, "here", size)


def _on_hub(name: str, identity: str) -> Entry:
    source = sources.Source(name, "hub", identity)
    folder = Path(constants.HF_HUB_CACHE, f"models--{identity.replace('/', '--')}")
    size = sum(dict(_files(folder)).values())
    state: State = "in part" if size else "not here"
    with contextlib.suppress(InputError):  # an index that cannot be read
        state = "here" if size and sources.cached(source) is not None else state
    return Entry(name, "hub", identity, source.description, state, size or None)


def _files(folder: Path) -> Iterator[tuple[tuple[int, int], int]]:
    """(device, inode) and bytes of all files; the links of a snapshot lead to the files that revisions share."""
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            yield (status.st_dev, status.st_ino), status.st_size
