"""Decoders of sparse autoencoders in files: their rows as directions, read one by one, by no library but safetensors.

Known are the layouts of SAELens (`W_dec` in sae_weights.safetensors beside cfg.json), of EleutherAI's sparsify (`W_dec`
in sae.safetensors beside cfg.json), and the matrix of a linear layer, `decoder.weight`, as OpenAI and
dictionary_learning store it. Any other tensor is read by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from probe import display
from probe.boundary import public
from probe.directions.vectors import Directions
from probe.errors import InputError
from probe.model import LanguageModel
from probe.model.files import require_exact, require_no_pointer

ROWS = {"W_dec": True, "decoder.weight": False, "decoder": None}
"""Names of decoders in files, by rank, and whether a direction is a row of the tensor; None: the name does not tell."""
FILES = ("sae_weights.safetensors", "sae.safetensors", "model.safetensors")
CONFIGURATIONS = ("cfg.json", "config.json")
_WIDTH = ("d_out", "d_in", "activation_dim", "d_model", "hidden_size")
_SITE = ("hook_name_out", "hook_name", "hook_point_out", "hook_point", "hookpoint", "submodule_name")
_STREAM = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|mlp_out|attn_out)")
_MODULE = re.compile(r"(?:.*\.)?(?:layers|blocks|h)\.(\d+)(?:\.mlp)?")


@dataclass(frozen=True, eq=False)
class Decoder:
    """The decoder of a sparse autoencoder in a file, of which only chosen rows are read; made by `open_decoder`.

    Attributes:
        file: The file.
        tensor: The tensor's name in it.
        n: Number of latents, each with a direction.
        d: Width of the directions.
        rows: Whether a direction is a row of the tensor; else a column.
        site: The tensor of the model that it reconstructs, as the configuration states it; None if it states none.
        depth: The depth of the stream at which it writes, where the site tells; an output that a block adds counts as
            the stream behind the block.
        configuration: What the file of settings beside it says; empty if there is none.
    """

    file: Path
    tensor: str
    n: int
    d: int
    rows: bool
    site: str | None
    depth: int | None
    configuration: Mapping[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return self.n

    def _repr_html_(self) -> str:
        return display.table(
            f"Decoder in {self.file.name}",
            {
                "tensor": f"{self.tensor}, a direction a {'row' if self.rows else 'column'}",
                "latents × width": f"{self.n:,} × {self.d:,}",
                "site": self.site or "not stated",
                "depth of the stream": "not known" if self.depth is None else self.depth,
            },
        )

    @public
    def directions(
        self, latents: Sequence[int] | Int[Tensor, " chosen"] | Int[ndarray, " chosen"], *, normalised: bool = False
    ) -> Directions:
        """Read the directions of some latents; no other part of the tensor is read.

        Args:
            latents: Their indices, in 0 … n − 1.
            normalised: Scale each to length 1. By default they are as long as in the file, in the units in which the
                autoencoder was trained, which a configuration's `normalize_activations` may have rescaled.

        Returns:
            The directions, by index, at the decoder's depth.

        Raises:
            InputError: If an index does not exist, or a direction that is to be normalised is zero.
        """
        chosen = [int(latent) for latent in latents]
        if not chosen or not all(0 <= latent < self.n for latent in chosen):
            raise InputError(f"latents must be at least one index in 0 … {self.n - 1}, got {chosen}: choose others")
        with _opened(self.file) as opened:
            whole = opened.get_slice(self.tensor)
            # one at a time, as a list of indices would read all between; copied, as it is the file's own memory
            parts = [whole[latent : latent + 1] if self.rows else whole[:, latent : latent + 1].mT for latent in chosen]
            vectors = torch.cat([part.double() for part in parts])
        if normalised:
            lengths = vectors.norm(dim=-1, keepdim=True)
            if not (lengths > 0).all():
                dead = chosen[int((lengths[:, 0] <= 0).nonzero()[0])]
                raise InputError(
                    f"a direction must not be zero to be normalised, and that of latent {dead} is: leave it out"
                )
            vectors = vectors / lengths
        return Directions(vectors, tuple(map(str, chosen)), self.depth, self.site)


@public
def open_decoder(
    path: Path | str,
    model: LanguageModel | int | None = None,
    *,
    tensor: str | None = None,
    rows: bool | None = None,
) -> Decoder:
    """Open the decoder of a sparse autoencoder, reading only names, shapes and settings.

    The axis whose length is the width d of the model is that of the coordinates; where there is no model, the width
    that the settings state (`d_in`, or `d_out` of a transcoder) stands in for it. Where both axes have that length, or
    no width is known, the tensor's name decides: of `W_dec` a direction is a row, (n, d), of `decoder.weight` a column,
    (d, n). What nothing decides is refused.

    Args:
        path: A .safetensors file, or a folder that holds one. Settings are read from cfg.json or config.json beside it.
        model: The model, or its width d.
        tensor: The tensor's name; by default the one that is called as decoders are (`ROWS`).
        rows: True if a direction is a row of the tensor, False if a column; needed where neither width nor name tells,
            and stronger than the name.

    Returns:
        The decoder.

    Raises:
        InputError: If there is no such file or tensor, it is of another format or width, or its orientation is not
            known.
    """
    file = _file_of(Path(path))
    settings = _settings_of(file)
    with _opened(file) as opened:
        names = list(opened.keys())
        name = _tensor_of(names, file) if tensor is None else tensor
        if name not in names:
            raise InputError(f"a decoder must be in its file, and {file} holds no {name}: {_listed(names)}")
        stored = opened.get_slice(name)
        require_exact(str(file), name, stored.get_dtype())
        shape = tuple(stored.get_shape())
    if len(shape) != 2:
        raise InputError(
            f"a decoder must be one matrix, and {name} in {file} is {shape}: save the matrix of one layer by itself, "
            "or pass its rows as a tensor"
        )
    width = model if isinstance(model, int) else model.d_model if model is not None else _number(settings)
    along = _orientation(name, shape, width, rows, file)
    n, d = shape if along else shape[::-1]
    site = next((str(settings[key]) for key in _SITE if settings.get(key)), None)
    return Decoder(file, name, n, d, along, site, None if site is None else depth_of(site), settings)


def depth_of(site: str) -> int | None:
    """Find the depth of the stream at which a site lies, or to which what is written there is added.

    Args:
        site: TransformerLens's name ("blocks.3.hook_resid_pre"), or a block's own ("layers.3", "layers.3.mlp").

    Returns:
        The depth; None if the site does not tell, such as the stream between attention and MLP.
    """
    if known := _STREAM.fullmatch(site):
        # between attention and MLP there is no depth
        return None if known[2] == "attn_out" else int(known[1]) + (known[2] != "resid_pre")
    module = _MODULE.fullmatch(site)
    return None if module is None else int(module[1]) + 1


def _file_of(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if len(found) != 1 and (len(found) == 0 or found[0].name not in FILES):
            raise InputError(
                f"a decoder's folder must hold one .safetensors file, and {path} holds {len(found)}: name the file"
            )
        return found[0]
    if not path.is_file():
        raise InputError(f"a decoder must be a file, and {path} is none: check the path")
    if path.suffix != ".safetensors":
        raise InputError(
            f"a decoder is read from a .safetensors file, got {path}: save the tensor by safetensors.torch.save_file, "
            "or load it yourself and pass its rows (torch.load with weights_only=True runs no code of the file)"
        )
    require_no_pointer(path)
    return path


def _settings_of(file: Path) -> dict[str, Any]:
    """The settings beside a file, those of its parts beside the whole's own."""
    for name in CONFIGURATIONS:
        beside = file.parent / name
        if beside.is_file():
            try:
                read = json.loads(beside.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"settings must be JSON, and {beside} is not ({error}): fetch it again") from error
            settings = read if isinstance(read, dict) else {}
            parts = [settings.get(part) for part in ("metadata", "trainer", "sae")]
            return {key: value for part in (*parts, settings) if isinstance(part, dict) for key, value in part.items()}
    return {}


def _number(settings: Mapping[str, Any]) -> int | None:
    return next((settings[key] for key in _WIDTH if isinstance(settings.get(key), int)), None)


def _tensor_of(names: Sequence[str], file: Path) -> str:
    for wanted in ROWS:
        found = [name for name in names if name == wanted or name.endswith(f".{wanted}")]
        if len(found) == 1:
            return found[0]
    raise InputError(
        f"a decoder must be called as decoders are ({', '.join(ROWS)}), once, and {file} has none so: pass tensor=; "
        f"{_listed(names)}"
    )


def _listed(names: Sequence[str]) -> str:
    return f"it holds {', '.join(names[:12])}{' …' if len(names) > 12 else ''}"


def _orientation(name: str, shape: tuple[int, ...], width: int | None, rows: bool | None, file: Path) -> bool:
    """Decide whether a direction is a row: by the width, then by the user's word, then by the name."""
    if width is not None and width not in shape:
        raise InputError(
            f"a decoder's directions must be as wide as the stream, {width}, and {name} in {file} is {shape}: it "
            "belongs to another model"
        )
    if width is not None and shape[0] != shape[1]:
        if rows is not None and rows != (shape[1] == width):
            raise InputError(
                f"rows= must agree with the width of the stream, {width}, and {name} in {file} is {shape}: leave it out"
            )
        return shape[1] == width
    if rows is not None:
        return rows
    told = next((told for known, told in ROWS.items() if name == known or name.endswith(f".{known}")), None)
    if told is None:
        raise InputError(
            f"it must be known whether a direction is a row or a column, and of {name} in {file}, {shape}, nothing "
            "tells: pass the model, or rows=True or False"
        )
    return told


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise InputError(f"a decoder's file must be readable, and {file} is not ({error}): fetch it again") from error
