"""Published lenses by the name of their model, from the hub or its cache.

Which file belongs to which model, and the revision that it is read at, stands in the registry that TransformerLens
ships; importing it is not needed for that.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from probe.boundary import public
from probe.errors import InputError
from probe.lens.files import read
from probe.lens.jacobian_lens import JacobianLens
from probe.model import LanguageModel
from probe.model.refusals import readable

_REGISTRY = "tools/analysis/jacobian_lens_registry.json"


def published() -> dict[str, dict[str, Any]]:
    """List the published lenses that the installed TransformerLens knows.

    Returns:
        By short name: `aliases`, the model's ids on the hub; `repo_id`, `filename` and `revision` of the file; and the
        `corpus`.

    Raises:
        InputError: If the installed version has no registry.
    """
    found = importlib.util.find_spec("transformer_lens")
    folders = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or []]
    file = next((folder / _REGISTRY for folder in folders if (folder / _REGISTRY).is_file()), None)
    if file is None:
        raise InputError(
            "published lenses are listed by transformer-lens 4.3 and later, and the installed version has no list: "
            "update it, or pass the file of a lens"
        )
    listed = json.loads(file.read_text(encoding="utf-8"))
    revision = listed.get("revision")
    return {name: {"revision": revision, **entry} for name, entry in listed.items() if isinstance(entry, dict)}


@public
def load(name: str | Path, model: LanguageModel | None = None, *, revision: str | None = None) -> JacobianLens:
    """Load a lens: a file, or the published lens of a model, from the hub's cache or the hub.

    Args:
        name: A .pt or .safetensors file; or the name of a model as `published` lists it, such as "gpt2-small", or its
            id on the hub.
        model: The model that it is for, which is compared with the lens.
        revision: Of the published file; None: the one that the registry pins.

    Returns:
        The lens.

    Raises:
        InputError: If there is no such file and no published lens of that name, the file can't be fetched, or the lens
            is of another model.
    """
    lens = read(Path(name)) if Path(name).is_file() else _of_registry(str(name), revision)
    if model is not None:
        lens.require(model)
    return lens


def _of_registry(name: str, revision: str | None) -> JacobianLens:
    listed = published()
    known = {alias.lower(): entry for entry in listed.values() for alias in entry.get("aliases", [])}
    known |= {short.lower(): entry for short, entry in listed.items()}
    entry = known.get(name.lower())
    if entry is None:
        close = difflib.get_close_matches(name.lower(), known, n=2)
        meant = f"perhaps {' or '.join(close)}" if close else "probe.lens.published() lists them"
        raise InputError(
            f"a lens must be a file that is there, or a model whose lens is published, and {name!r} is neither: {meant}"
        )
    place = {"repo_id": entry["repo_id"], "filename": entry["filename"], "revision": revision or entry["revision"]}
    cached = try_to_load_from_cache(**place)
    if isinstance(cached, str):
        path = cached
    else:
        with readable(name, entry["repo_id"], what="lens"):
            path = hf_hub_download(**place)
    lens = read(Path(path))
    origin = {"model": next(iter(entry.get("aliases", [])), name), "text": entry.get("corpus"), **lens.provenance}
    return replace(lens, provenance={**origin, "source": f"{place['repo_id']}, {place['filename']}", **_pinned(place)})


def _pinned(place: dict[str, Any]) -> dict[str, Any]:
    return {"revision": place["revision"]} if place["revision"] else {}
