"""The Jacobian lens: a matrix for each layer, which carries its stream to that behind the last block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from probe import display, spectra
from probe.boundary import public
from probe.directions import Directions, unembedding_rows
from probe.errors import InputError
from probe.model import LanguageModel

if TYPE_CHECKING:
    import pandas as pd

    from probe.lens.reading import Lens, Named, Readout
    from probe.text import Given, Which


@public
@dataclass(frozen=True, eq=False, repr=False)
class JacobianLens(display.Shown):
    r"""Transports J_l from the stream behind block l to that behind the target block, means over documents.

    A state is read out as ``unembed(norm(J_l h_l))``; J = I gives the logit lens.

    Attributes:
        layers: The source layers l, ascending: J_l acts on the output of block l (`blocks.l.hook_resid_post`).
        jacobians: The matrices, float32 on the CPU, (layers, d, d).
        to_layer: The target layer, whose own lens is the identity; None in a file that does not state it: the last.
        n_documents: Number of documents averaged.
        spread: Standard deviation of each entry over documents (divided by N), float32; None in a lens that was fitted
            elsewhere.
        documents: For each document: `sha256` of its token ids, and by layer its norm ‖J‖_F and trace/d, "norm" and
            "alpha"; empty in a lens that was fitted elsewhere.
        provenance: Where it comes from: estimator, model, text, versions.
    """

    layers: tuple[int, ...]
    jacobians: Float[Tensor, "layer d d"]
    to_layer: int | None
    n_documents: int
    spread: Float[Tensor, "layer d d"] | None = None
    documents: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.jacobians.shape)
        if len(shape) != 3 or shape[0] != len(self.layers) or shape[1] != shape[2] or not self.layers:
            raise InputError(
                f"jacobians= must hold a square matrix for each layer, got {len(self.layers)} layers and an array "
                f"{shape}: pass (layers, d, d)"
            )
        end = self.layers[-1] + 1 if self.to_layer is None else self.to_layer
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0 or self.layers[-1] >= end:
            raise InputError(
                f"layers must ascend from 0 and lie before the target, to_layer={self.to_layer}, got "
                f"{list(self.layers)}: sort them, and leave the target out, whose lens is the identity"
            )
        if not bool(self.jacobians.isfinite().all()):
            wrong = next(layer for layer in self.layers if not bool(self[layer].isfinite().all()))
            raise InputError(
                f"jacobians= must be finite, got NaN or infinity at layer {wrong}: written perhaps in float16, "
                "which ends at 65,504; write them again in float32"
            )

    @property
    def d_model(self) -> int:
        """Width d of the stream."""
        return int(self.jacobians.shape[-1])

    @public
    def __getitem__(self, layer: int) -> Float[Tensor, "d d"]:
        """Return the matrix of a layer, J_l; that of the target is the identity.

        Args:
            layer: The layer.

        Returns:
            J_l, float32.

        Raises:
            InputError: If the lens has no such layer.
        """
        if layer == self.to_layer:
            return torch.eye(self.d_model)
        if layer not in self.layers:
            raise InputError(
                f"layer must be one of the lens, {display.brief(list(self.layers))}, or its target {self.to_layer}, "
                f"got {layer!r}: choose one"
            )
        return self.jacobians[self.layers.index(layer)]

    @public
    def transport(self, states: Float[Tensor, "*batch d"], layer: int) -> Float[Tensor, "*batch d"]:
        """Carry states behind block `layer` to the target, ``J_l h``.

        Args:
            states: States, (..., d).
            layer: Their layer.

        Returns:
            The states at the target, float32.

        Raises:
            InputError: If the lens has no such layer, or the states have another width.
        """
        if states.shape[-1] != self.d_model:
            raise InputError(
                f"states must have the lens's width, {self.d_model}, got {tuple(states.shape)}: pass (..., d)"
            )
        return states.float() @ self[layer].to(states.device).mT

    # Its statistics

    @property
    def alpha(self) -> Float[Tensor, " layer"]:
        """The multiple of the identity nearest to each matrix, α = tr(J)/d."""
        return self.jacobians.diagonal(dim1=-2, dim2=-1).double().mean(-1)

    @property
    def identity_share(self) -> Float[Tensor, " layer"]:
        """Share of ‖J‖_F² that α I has, α² d / ‖J‖_F²; the rest is that of M = J − α I."""
        return spectra.identity_share(self.jacobians)

    def without_identity(self) -> Float[Tensor, "layer d d"]:
        """Return M = J − α I, float64."""
        return without_identity(self.jacobians.double())

    def to_dataset(self) -> xr.Dataset:
        """Convert norms, the identity's share, participation ratios and the spread to a Dataset over layers.

        Returns:
            `norm` ‖J‖_F, `alpha`, `identity_share`, `participation_ratio` of the squared singular values of M, and
            `relative_spread`, sqrt(Σ spread²)/‖J‖_F, where it is known.
        """
        norm = self.jacobians.double().norm(dim=(-2, -1))
        values: dict[str, tuple[Tensor, str, str]] = {
            "norm": (norm, "‖J‖_F", "1"),
            "alpha": (self.alpha, "α = tr(J)/d", "1"),
            "identity_share": (self.identity_share, "share of ‖J‖_F² that α I has", "1"),
            "participation_ratio": (
                spectra.participation_ratio(self.without_identity()),
                "participation ratio of the squared singular values of J − α I",
                "1",
            ),
        }
        if self.spread is not None:
            spread = self.spread.double().norm(dim=(-2, -1)) / norm
            values["relative_spread"] = (spread, "standard deviation over documents, relative to ‖J‖_F", "1")
        data = xr.Dataset({name: ("layer", value.numpy()) for name, (value, _, _) in values.items()})
        for name, (_, words, unit) in values.items():
            data[name].attrs = {"long_name": words, "units": unit}
        return data.assign_coords(layer=list(self.layers))

    def table(self) -> pd.DataFrame:
        """Tabulate `to_dataset`: one row for each layer."""
        return self.to_dataset().to_dataframe().reset_index()

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"layers": list(self.layers), "width": self.d_model, "documents": self.n_documents}
        if self.provenance.get("model"):
            facts["model"] = self.provenance["model"]
        if "targets" in self.provenance:
            facts["targets"] = self.provenance["targets"]
        return facts

    # Beside a model

    @public
    def require(self, model: LanguageModel) -> None:
        """Refuse a model that the lens was not fitted on.

        Compared are the width, the layers and, where the lens states it, the hash of the weights or the name.

        Args:
            model: The model.

        Raises:
            InputError: If they differ, or the lens was fitted on weights that were folded or centred.
        """
        deepest = self.layers[-1] + 1 if self.to_layer is None else self.to_layer
        require_own(model, self.d_model, deepest, self.provenance)

    @public
    def vectors(
        self,
        model: LanguageModel,
        tokens: Sequence[int | str] | Int[Tensor, " token"] | Int[ndarray, " token"],
        layer: int,
        *,
        folded: bool = False,
    ) -> Directions:
        """Return the directions of the stream behind block `layer` that stand for tokens: rows of W_U J_l.

        Args:
            model: The model.
            tokens: Ids, or texts that are one token each.
            layer: The layer.
            folded: Take the rows of W_U with the final norm's gain folded in, as the model's logits have it. By
                default those of the matrix itself, as the reference does.

        Returns:
            One direction a token, float64, at depth `layer + 1`.

        Raises:
            InputError: If the lens is of another model, has no such layer, or a text is not one token.
        """
        self.require(model)
        require_raw(model)
        rows = unembedding_rows(model, tokens, folded=folded)
        return replace(
            rows,
            vectors=rows.vectors @ self[layer].double(),
            depth=layer + 1,
            site=f"blocks.{layer}.hook_resid_post",
        )

    @public
    def readout(
        self,
        model: LanguageModel,
        prompts: Given,
        *,
        layers: int | Sequence[int] | None = None,
        positions: Which | None = None,
        k: int = 5,
        beside: Sequence[Named] | Mapping[str, Lens] = ("logit",),
    ) -> Readout:
        """Read the stream of prompts out by this lens, and by others beside it; see `probe.lens.readout`.

        Args:
            model: The model.
            prompts: What `probe.load_prompts` takes or gives.
            layers: The layers to read; None: those of the lens, and the last.
            positions: The positions of each prompt; None: all.
            k: Number of tokens kept.
            beside: Other lenses: "logit" (J = I), "own" (the context's own Jacobian), or fitted ones by name.

        Returns:
            The readout; this lens comes first, as "jacobian".

        Raises:
            InputError: If the lens is of another model or lacks a layer, or a layer or position does not exist.
        """
        from probe.lens.reading import readout

        others = beside if isinstance(beside, Mapping) else {str(name): name for name in beside}
        if layers is None:
            layers = [*self.layers, model.n_layers - 1]
        return readout(model, prompts, {"jacobian": self, **others}, layers=layers, positions=positions, k=k)

    # Files; see `probe.lens.files`

    @public
    def save(self, path: Path | str, *, dtype: torch.dtype | None = None) -> Path:
        """Write the lens: a .safetensors file holds everything, a .pt file what other libraries read.

        Args:
            path: The file, .safetensors or .pt.
            dtype: Of the matrices in a .pt file; by default float16 as the reference writes, or float32 where an entry
                exceeds 65,504. A .safetensors file has float32.

        Returns:
            The path.

        Raises:
            InputError: If the ending is another, or the matrices do not fit the dtype.
        """
        from probe.lens.files import write

        return write(self, Path(path), dtype)

    @classmethod
    @public
    def load(cls, path: Path | str) -> JacobianLens:
        """Read a lens that `save`, TransformerLens or the reference wrote; no code of the file is run.

        Args:
            path: A .safetensors file of `save`; a .pt file of matrices, or a checkpoint of sums of the reference.

        Returns:
            The lens.

        Raises:
            InputError: If it is none.
        """
        from probe.lens.files import read

        return read(Path(path))


def require_own(model: LanguageModel, width: int, deepest: int, provenance: Mapping[str, Any]) -> None:
    """Refuse a model that a lens was not fitted on.

    Args:
        model: The model.
        width: The lens's width.
        deepest: Its target layer.
        provenance: Where it comes from: compared is the hash of the weights or, without one, the name.

    Raises:
        InputError: If they differ.
    """
    repair = "load the lens of this model, or dataclasses.replace(lens, provenance={}) to use it all the same"
    if width != model.d_model or deepest >= model.n_layers:
        raise InputError(
            f"a lens must be of the model, and this one has width {width} and reaches block "
            f"{deepest} where {model.name} has {model.d_model} and {model.n_layers} blocks: load the lens "
            "of this model"
        )
    weights, name = provenance.get("weights"), provenance.get("model")
    if weights is not None and weights != model.weight_hash:
        raise InputError(
            f"a lens must be of the model, and this one was fitted on other weights, those of "
            f"{name or 'an unnamed model'}, than {model.name}: {repair}"
        )
    if weights is None and isinstance(name, str) and not _alike(name, model.name):
        raise InputError(
            f"a lens must be of the model, and this one was fitted on {name}, not on {model.name}: {repair}"
        )


def without_identity(found: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """Subtract the nearest multiple of the identity: M = J − α I, α = tr(J)/d.

    Args:
        found: Matrices J, (..., d, d).

    Returns:
        M, in the dtype of J.
    """
    found = found.clone()
    found.diagonal(dim1=-2, dim2=-1).sub_(found.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True))
    return found


def _alike(one: str, other: str) -> bool:
    """Compare two names of models by their last part, without case."""
    plain = [name.rstrip("/").rpartition("/")[2].lower() for name in (one, other)]
    return plain[0] == plain[1]


def require_raw(model: LanguageModel) -> None:
    """Refuse a model whose stream is not the one on which lenses are fitted: folded or centred weights.

    Args:
        model: The model.

    Raises:
        InputError: If it is a TransformerBridge whose weights were processed.
    """
    module: Any = model.module
    if getattr(module, "compatibility_mode", False) or getattr(module, "_weights_processed", False):
        raise InputError(
            f"a lens is fitted and read on raw weights, and those of {model.name} were folded or centred: load the "
            "model anew"
        )
