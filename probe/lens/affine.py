"""The affine lens: for each layer the affine map from its stream to that behind the last block, by ridge regression."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from probe import display
from probe.boundary import at_least, public
from probe.errors import InputError
from probe.lens.estimators import SKIP_FIRST, Estimator
from probe.lens.files import placed
from probe.lens.fitting import hash_of, provenance_of
from probe.lens.jacobian_lens import require_own, require_raw
from probe.maps import LinearMap
from probe.maps.linear import SufficientStatistics
from probe.model import LanguageModel, undisturbed
from probe.stream import watch
from probe.text import Given, as_rows

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("probe.lens")

FORMAT = "probe affine lens 1"
HELD_OUT = 5  # the last fifth of the documents is held out


@public
@dataclass(frozen=True, eq=False, repr=False)
class AffineLens(display.Shown):
    r"""Affine maps h ↦ A_l h + b_l from the stream behind block l to that behind the last block.

    A state is read out as ``unembed(norm(A_l h_l + b_l))``. `fit_affine` makes one by ridge regression, `fit_tuned`
    trains one on the outputs.

    Attributes:
        layers: The source layers l, ascending: the stream behind block l (`blocks.l.hook_resid_post`).
        matrices: The matrices A_l, float32 on the CPU, (layers, d, d).
        biases: The offsets b_l, float32, (layers, d).
        to_layer: The last layer, whose own map is the identity.
        losses: Of a trained lens, in nats: "validation", KL(output ‖ lens) over the held-out documents, (check, layer),
            after the steps "step", (check,), the first of which is the start; and "training", that of each step,
            (step, layer). Empty otherwise.
        provenance: Where it comes from: kind, ridges, model, documents, versions.
    """

    layers: tuple[int, ...]
    matrices: Float[Tensor, "layer d d"]
    biases: Float[Tensor, "layer d"]
    to_layer: int
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, count = tuple(self.matrices.shape), len(self.layers)
        if not count or shape != (count, shape[-1], shape[-1]) or tuple(self.biases.shape) != shape[:2]:
            raise InputError(
                f"an affine lens must hold a square matrix and an offset for each layer, got {count} layers, matrices "
                f"{shape} and offsets {tuple(self.biases.shape)}: pass (layers, d, d) and (layers, d)"
            )
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0 or self.layers[-1] >= self.to_layer:
            raise InputError(
                f"layers must ascend from 0 and lie before the target, to_layer={self.to_layer}, got "
                f"{list(self.layers)}: sort them, and leave the target out, whose map is the identity"
            )
        if not bool(self.matrices.isfinite().all() and self.biases.isfinite().all()):
            raise InputError("matrices= and biases= must be finite, got NaN or infinity: fit the lens anew")

    @classmethod
    @public
    def identity(cls, model: LanguageModel, layers: Sequence[int]) -> AffineLens:
        """Make the logit lens, A = I and b = 0, as an affine lens.

        Args:
            model: The model.
            layers: The layers, before the last.

        Returns:
            The lens.
        """
        count, width = len(layers), model.d_model
        matrices = torch.eye(width).repeat(count, 1, 1)
        provenance = {"kind": "identity", "model": model.name, "weights": model.weight_hash}
        return cls(tuple(layers), matrices, torch.zeros(count, width), model.n_layers - 1, provenance=provenance)

    @property
    def d_model(self) -> int:
        """Width d of the stream."""
        return int(self.matrices.shape[-1])

    @public
    def __getitem__(self, layer: int) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
        """Return the map of a layer; that of the last is the identity.

        Args:
            layer: The layer.

        Returns:
            A_l and b_l, float32.

        Raises:
            InputError: If the lens has no such layer.
        """
        if layer == self.to_layer:
            return torch.eye(self.d_model), torch.zeros(self.d_model)
        if layer not in self.layers:
            raise InputError(
                f"layer must be one of the lens, {display.brief(list(self.layers))}, or its target {self.to_layer}, "
                f"got {layer!r}: choose one"
            )
        row = self.layers.index(layer)
        return self.matrices[row], self.biases[row]

    @public
    def transport(
        self, states: Float[Tensor, "*batch d"] | Float[np.ndarray, "*batch d"], layer: int
    ) -> Float[Tensor, "*batch d"]:
        """Carry states behind block `layer` to the last block, ``A_l h + b_l``.

        Args:
            states: States, (..., d).
            layer: Their layer.

        Returns:
            The states behind the last block, float32.

        Raises:
            InputError: If the lens has no such layer, or the states have another width.
        """
        states = torch.as_tensor(states)
        if states.shape[-1] != self.d_model:
            raise InputError(
                f"states must have the lens's width, {self.d_model}, got {tuple(states.shape)}: pass (..., d)"
            )
        matrix, bias = (part.to(states.device) for part in self[layer])
        return states.float() @ matrix.mT + bias

    @public
    def require(self, model: LanguageModel) -> None:
        """Refuse a model that the lens was not fitted on.

        Args:
            model: The model.

        Raises:
            InputError: If width, layers or weights differ.
        """
        require_own(model, self.d_model, self.to_layer, self.provenance)

    def to_dataset(self) -> xr.Dataset:
        """Convert norms of the maps, and the losses of a trained lens, to a Dataset over layers.

        Returns:
            `norm` ‖A‖_F, `alpha` tr(A)/d and `offset` ‖b‖; of a trained lens `kl`, (check, layer), over the held-out
            documents, with the steps along `check`.
        """
        values = {
            "norm": (self.matrices.double().norm(dim=(-2, -1)), "‖A‖_F"),
            "alpha": (self.matrices.double().diagonal(dim1=-2, dim2=-1).mean(-1), "tr(A)/d"),
            "offset": (self.biases.double().norm(dim=-1), "‖b‖₂"),
        }
        data = xr.Dataset({name: ("layer", value.numpy()) for name, (value, _) in values.items()})
        for name, (_, words) in values.items():
            data[name].attrs = {"long_name": words, "units": "1"}
        if self.losses:
            said = {"long_name": "KL divergence of the lens's output from the model's, held-out documents"}
            data["kl"] = (("check", "layer"), self.losses["validation"].numpy(), said | {"units": "nat"})
            data = data.assign_coords(check=self.losses["step"].tolist())
        return data.assign_coords(layer=list(self.layers))

    def table(self) -> pd.DataFrame:
        """Tabulate norms and offsets: one row for each layer, with the first and the best loss of a trained lens."""
        data = self.to_dataset()
        if "kl" in data:
            curve = data["kl"].drop_vars("check")
            data = data.drop_dims("check").assign(kl_start=curve[0], kl=curve.min("check"))
        return data.to_dataframe().reset_index()

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"layers": list(self.layers), "width": self.d_model}
        return facts | {name: self.provenance[name] for name in ("kind", "model") if name in self.provenance}

    @public
    def save(self, path: Path | str) -> Path:
        """Write the lens to a .safetensors file, whole or not at all.

        Args:
            path: The file.

        Returns:
            The path.

        Raises:
            InputError: If the ending is another, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise InputError(f"the path of an affine lens must end in .safetensors, got {path.name}: change the ending")
        tensors = {"matrices": self.matrices.contiguous(), "biases": self.biases.contiguous()}
        tensors |= {f"losses.{name}": values.contiguous() for name, values in self.losses.items()}
        said = {"layers": list(self.layers), "to_layer": self.to_layer, "provenance": dict(self.provenance)}
        return placed(path, lambda partial: save_file(tensors, partial, {"format": FORMAT, "lens": json.dumps(said)}))

    @classmethod
    @public
    def load(cls, path: Path | str) -> AffineLens:
        """Read a lens that `save` wrote.

        Args:
            path: The file.

        Returns:
            The lens.

        Raises:
            InputError: If it is none.
        """
        repair = "fit it anew, or read other lenses by JacobianLens.load"
        try:
            with safe_open(path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"path= must be readable as an affine lens, and {path} is not ({error}): {repair}"
            ) from error
        if metadata.get("format") != FORMAT:
            raise InputError(f"an affine lens must be one that its save has written, and {path} is another: {repair}")
        said = json.loads(metadata["lens"])
        losses = {name.partition(".")[2]: tensors[name] for name in tensors if name.startswith("losses.")}
        layers, maps = tuple(said["layers"]), (tensors["matrices"], tensors["biases"])
        return cls(layers, *maps, said["to_layer"], losses, said["provenance"])


@public(batch_size=at_least(1))
@undisturbed()
def fit_affine(
    model: LanguageModel,
    prompts: Given,
    *,
    layers: int | Sequence[int] | None = None,
    skip_first: int = SKIP_FIRST,
    ridge: float | int | None = None,
    validation: Given | None = None,
    batch_size: int = 8,
    quiet: bool = False,
) -> AffineLens:
    r"""Fit an affine lens by ridge regression from the stream behind each block to that behind the last.

    .. math:: A_l, b_l = \arg\min \sum_t \| h_L(t) - A h_l(t) - b \|^2 + \lambda \|A\|_F^2

    over the positions t of all documents from `skip_first` to the last but one; the offset is not penalised, and λ is
    `ridge` times the mean eigenvalue of the layer's centred second moments, as of `probe.maps.LinearMap`. One pass
    over the text: sums in float64, 16 d² bytes a layer, twice that where the ridge is chosen. Time: the passes,
    4 d² FLOPs a position and layer, and O(d³) a layer.

    Args:
        model: The model.
        prompts: Windows of `load_windows`, prompts of `load_prompts`, or what that takes.
        layers: Source layers; None: all before the last.
        skip_first: Positions at the start that do not count.
        ridge: Relative strength of the penalty. None chooses among `probe.maps.RIDGES` for each layer, by the squared
            error on held-out documents; the lens is then fitted on all with it.
        validation: The held-out documents; by default the last fifth of `prompts`, at least one document.
        batch_size: Documents in a pass.
        quiet: Show no progress bar.

    Returns:
        The lens.

    Raises:
        InputError: If a layer does not exist, too few documents have two positions that count, or the ridge is
            negative.
    """
    require_raw(model)
    estimator = Estimator.of(model, layers=layers, skip_first=skip_first)
    rows, held = divided(model, prompts, validation, skip_first, needed=ridge is None)
    sums = [_sums(model, part, estimator, batch_size, quiet) for part in ((rows, held) if ridge is None else (rows,))]
    fitted = []
    for row in range(len(estimator.layers)):
        chosen = ridge
        if chosen is None:
            chosen = LinearMap().fit_statistics(sums[0][row], validation=sums[1][row]).ridge_
            sums[0][row].merge(sums[1][row])
        fitted.append(LinearMap(ridge=chosen).fit_statistics(sums[0][row]))
    every = (*rows, *held) if ridge is None else rows
    return AffineLens(
        estimator.layers,
        torch.stack([one.weight_.T for one in fitted]).float().cpu(),
        torch.stack([one.mean_y_ - one.mean_x_ @ one.weight_ for one in fitted]).float().cpu(),
        estimator.to_layer,
        provenance=origin(model, estimator, "ridge", every) | {"ridges": [one.ridge_ for one in fitted]},
    )


def origin(model: LanguageModel, estimator: Estimator, kind: str, documents: Sequence[Tensor]) -> dict[str, Any]:
    """State where an affine lens comes from.

    Args:
        model: The model.
        estimator: Its layers and positions.
        kind: "ridge" or "tuned".
        documents: The token ids of its documents.

    Returns:
        Plain values.
    """
    said = provenance_of(model, estimator, torch.float32)
    unsaid = ("targets", "sources", "dtype")
    facts = {name: value for name, value in said.items() if name not in unsaid}
    hashes = [hash_of(ids) for ids in documents]
    return facts | {"kind": kind, "n_documents": len(documents), "sha256": hashes}


def divided(
    model: LanguageModel, prompts: Given, validation: Given | None, skip_first: int, *, needed: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Divide text by document into what is fitted and what is held out.

    Args:
        model: The model.
        prompts: The text.
        validation: Text to hold out; None: the last fifth of the documents.
        skip_first: Positions at the start that do not count.
        needed: Whether anything is to be held out.

    Returns:
        Token ids of the rows that are fitted, and of those held out.

    Raises:
        InputError: If a part has no row with two positions that count.
    """
    rows = as_rows(model, prompts)
    names = list(dict.fromkeys(rows.document.tolist()))
    last = set(names[-max(1, len(names) // HELD_OUT) :]) if needed and validation is None else set()
    out = [document in last for document in rows.document.tolist()]
    parts = [[ids for ids, held in zip(rows.ids, out, strict=True) if held == which] for which in (False, True)]
    if validation is not None:
        parts[1] = list(as_rows(model, validation, argument="validation").ids)
    least = skip_first + 3
    long = [tuple(ids for ids in part if len(ids) >= least) for part in parts]
    if short := sum(map(len, parts)) - sum(map(len, long)):
        logger.warning("%d rows have fewer than two positions that count, and are left out", short)
    if not long[0] or (needed and not long[1]):
        what = "to fit" if not long[0] else "to hold out"
        raise InputError(
            f"prompts= must hold documents of at least {least} tokens, skip_first + 3, got none {what} of "
            f"{len(rows.ids)} rows in {len(names)} documents: pass more or longer ones, a smaller skip_first=, or "
            "validation="
        )
    return long[0], long[1]


@torch.no_grad()
def counted_states(
    model: LanguageModel, documents: Sequence[Tensor], estimator: Estimator, batch_size: int
) -> Iterator[tuple[int, Float[Tensor, "layer n d"], Float[Tensor, "n d"]]]:
    """Run documents, and yield the streams at their positions that count.

    Args:
        model: The model.
        documents: Token ids.
        estimator: The layers and positions.
        batch_size: Documents in a pass; those in one pass have one length.

    Yields:
        How many documents were run, the streams behind the layers, and that behind the last block; float32.
    """
    names = [f"blocks.{layer}.hook_resid_post" for layer in (*estimator.layers, estimator.to_layer)]
    lengths = dict.fromkeys(len(ids) for ids in documents)
    for length in lengths:
        alike = torch.stack([ids for ids in documents if len(ids) == length])
        for batch in alike.split(batch_size):
            with watch(model, dict.fromkeys(names)) as seen:
                model.final_states(batch.to(model.device))
            parts = [seen[name][:, estimator.skip_first : -1].float().flatten(0, 1) for name in names]
            yield len(batch), torch.stack(parts[:-1]), parts[-1]


def _sums(
    model: LanguageModel, documents: Sequence[Tensor], estimator: Estimator, batch_size: int, quiet: bool
) -> list[SufficientStatistics]:
    d = model.d_model
    found = [SufficientStatistics(d, d, model.device) for _ in estimator.layers]
    with tqdm(total=len(documents), desc="affine lens", unit="doc", disable=quiet or None) as bar:
        for count, states, final in counted_states(model, documents, estimator, batch_size):
            for sums, at in zip(found, states, strict=True):
                sums.update(at, final)
            bar.update(count)
    return found
