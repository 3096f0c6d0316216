"""Fitting a lens: the mean over documents, streamed, resumed where it was broken off, and merged."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from probe.boundary import public
from probe.errors import InputError
from probe.jacobian import MEMORY
from probe.lens.estimators import SKIP_FIRST, Estimator, Targets, document_jacobian
from probe.lens.files import placed
from probe.lens.jacobian_lens import JacobianLens, require_raw
from probe.model import LanguageModel
from probe.runs.provenance import versions
from probe.text import Given, as_rows

logger = logging.getLogger("probe.lens")

_FORMAT = "probe lens fit 1"


@public
def fit(
    model: LanguageModel,
    prompts: Given,
    *,
    targets: Targets = "later",
    layers: int | Sequence[int] | None = None,
    to_layer: int | None = None,
    skip_first: int = SKIP_FIRST,
    sources: int | None = None,
    chunk: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype = torch.float32,
    checkpoint: Path | str | None = None,
    quiet: bool = False,
) -> JacobianLens:
    r"""Fit a Jacobian lens: the exact mean over documents of ∂(stream behind the target)/∂(stream behind block l).

    .. math:: J_l = \frac1N \sum_n \frac1{|V|} \sum_{t \in V} \sum_{s \in V, s \ge t}
        \frac{\partial h_b(s)}{\partial h_l(t)}

    with V the positions from `skip_first` to the last but one (Gurnee et al. 2026). Each window or prompt counts once.
    Mean and spread are kept in float64: 16 · layers · d² bytes, whatever the number of documents.

    Args:
        model: The model.
        prompts: Windows of `load_windows`, prompts of `load_prompts`, or what that takes. The reference takes 128
            tokens of each.
        targets: "later", the reference's estimator; "same": ∂h_b(t)/∂h_l(t), the product of the block Jacobians; or a
            number k of later positions, t ≤ s ≤ t + k.
        layers: Source layers, the stream behind block l; None: all before the target.
        to_layer: The target layer b; None: the last block.
        skip_first: Positions at the start that do not count.
        sources: Of "same" and a number, how many source positions of a document are taken, evenly spaced; None: all.
        chunk: Rows in one backward pass; by default 8.
        memory: Bytes to use beside the running mean.
        dtype: Of the arithmetic: `torch.float32` or `torch.float64`.
        checkpoint: A file in which the running mean is kept after each document; a later call with the same model,
            documents and choices goes on there. It is removed when the fit is done.
        quiet: Show no progress bar.

    Returns:
        The lens.

    Raises:
        InputError: If no document has a position that counts, a choice does not exist, the checkpoint is of another
            fit, or the model does not differentiate.
    """
    require_raw(model)
    estimator = Estimator.of(
        model, targets=targets, layers=layers, to_layer=to_layer, skip_first=skip_first, sources=sources
    )
    rows = as_rows(model, prompts)
    documents = [ids for ids in rows.ids if len(ids) >= estimator.least]
    if short := len(rows.ids) - len(documents):
        logger.warning("%d of %d documents have no position that counts, and are left out", short, len(rows.ids))
    if not documents:
        raise InputError(
            f"a document must have at least {estimator.least} tokens, skip_first + 2, and none of {len(rows.ids)} has: "
            "pass longer ones, or a smaller skip_first="
        )
    provenance = provenance_of(model, estimator, dtype) | {"text": getattr(rows, "name", "windows")}
    hashes = [hash_of(ids) for ids in documents]
    running = _Running.begun(None if checkpoint is None else Path(checkpoint), provenance, hashes)
    bar = tqdm(total=len(documents), initial=running.count, desc="lens", unit="doc", disable=quiet or None)
    with bar:
        for ids in documents[running.count :]:
            running.add(document_jacobian(model, ids, estimator, chunk=chunk, memory=memory, dtype=dtype))
            running.keep()
            bar.update(1)
    return running.lens(estimator)


def hash_of(ids: Int[Tensor, " position"]) -> str:
    """Hash the token ids of a document."""
    return hashlib.sha256(ids.cpu().to(torch.int64).numpy().tobytes()).hexdigest()


def provenance_of(model: LanguageModel, estimator: Estimator, dtype: torch.dtype) -> dict[str, Any]:
    """Describe the model and the choices of a fit, as files keep them."""
    return {
        "targets": estimator.targets,
        "skip_first": estimator.skip_first,
        "sources": estimator.sources,
        "layers": list(estimator.layers),
        "to_layer": estimator.to_layer,
        "model": model.name,
        "description": model.description,
        "architecture": model.architecture,
        "n_layers": model.n_layers,
        "weights": model.weight_hash,
        "attention": model.attention,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "dtype": str(dtype).removeprefix("torch."),
        "versions": versions(),
    }


class _Running:
    """Running mean and sum of squared deviations (Welford 1962), in float64, and the file that they are kept in."""

    def __init__(self, path: Path | None, provenance: dict[str, Any], documents: list[str]) -> None:
        self.path, self.provenance, self.documents = path, provenance, documents
        self.mean = self.squares = torch.empty(0)
        self.norms: list[Tensor] = []
        self.alphas: list[Tensor] = []

    @property
    def count(self) -> int:
        """Documents that are in it."""
        return len(self.norms)

    def add(self, matrices: Float[Tensor, "layer d d"]) -> None:
        """Add a document."""
        value = matrices.double().cpu()
        self.norms.append(value.norm(dim=(-2, -1)))
        self.alphas.append(value.diagonal(dim1=-2, dim2=-1).mean(-1))
        if self.count == 1:
            self.mean, self.squares = value, torch.zeros_like(value)
            return
        before = value - self.mean
        self.mean += before / self.count
        self.squares.addcmul_(before, value - self.mean)

    def lens(self, estimator: Estimator) -> JacobianLens:
        """Make the lens, and remove the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        documents = {
            "sha256": tuple(self.documents[: self.count]),
            "norm": torch.stack(self.norms),
            "alpha": torch.stack(self.alphas),
        }
        spread = (self.squares / self.count).sqrt().float()
        return JacobianLens(
            estimator.layers,
            self.mean.float(),
            estimator.to_layer,
            self.count,
            spread,
            documents,
            self.provenance,
        )

    def keep(self) -> None:
        """Write what there is, if a file was named."""
        if self.path is None:
            return
        tensors = {
            "mean": self.mean,
            "squares": self.squares,
            "norm": torch.stack(self.norms),
            "alpha": torch.stack(self.alphas),
        }
        said = {"format": _FORMAT, "fit": json.dumps(self._said())}
        placed(self.path, lambda partial: save_file(tensors, partial, said))

    def _said(self) -> dict[str, Any]:
        return {"provenance": self.provenance, "documents": self.documents}

    @classmethod
    def begun(cls, path: Path | None, provenance: dict[str, Any], documents: list[str]) -> _Running:
        """Begin, or go on with what a file holds."""
        running = cls(path, provenance, documents)
        if path is None or not path.exists():
            return running
        try:
            with safe_open(path, framework="pt") as opened:
                said = json.loads((opened.metadata() or {}).get("fit", "null"))
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"a checkpoint must be one that a fit has written, and {path} cannot be read ({error}): name another "
                "file, or remove this one"
            ) from error
        now = json.loads(json.dumps(running._said()))
        if said != now:
            differ = _difference(said, now)
            raise InputError(
                f"a checkpoint must be of the same fit, and {path} differs in {differ}: name another file, or remove "
                "this one"
            )
        running.mean, running.squares = tensors["mean"], tensors["squares"]
        running.norms, running.alphas = list(tensors["norm"]), list(tensors["alpha"])
        logger.info("a fit goes on behind document %d of %d", running.count, len(documents))
        return running


def _difference(said: Any, now: dict[str, Any]) -> str:
    if not isinstance(said, dict) or "provenance" not in said:
        return "its format"
    old, new = said["provenance"], now["provenance"]
    names = [name for name in new if old.get(name) != new[name]]
    return ", ".join(names) if names else "its documents"


@public
def merge(lenses: Sequence[JacobianLens]) -> JacobianLens:
    """Merge lenses that were fitted on disjoint documents, each counting as often as it has documents.

    Args:
        lenses: Lenses of one model and estimator.

    Returns:
        The lens of all documents.

    Raises:
        InputError: If there is none, they differ in model, layers or estimator, one does not say of how many documents
            it is, or a document is in two of them.
    """
    if not lenses:
        raise InputError("a merge must be of at least one lens, got none: pass a list of lenses")
    first = lenses[0]
    for other in lenses:
        if other.layers != first.layers or other.to_layer != first.to_layer or other.d_model != first.d_model:
            raise InputError(
                f"lenses must have the same layers, target and width to be merged, got {first!r} and {other!r}: fit "
                "them alike"
            )
        said = ("targets", "skip_first", "sources", "weights", "dtype")
        unlike = [name for name in said if other.provenance.get(name) != first.provenance.get(name)]
        if unlike:
            raise InputError(
                f"lenses must be of one model and estimator to be merged, and differ in {', '.join(unlike)}: fit them "
                "alike"
            )
        if other.n_documents < 1:
            raise InputError("a lens must say of how many documents it is to be merged, and one does not: fit it anew")
    hashes = [one for lens in lenses for one in lens.documents.get("sha256", ())]
    if len(hashes) > len(set(hashes)):
        raise InputError(
            f"lenses must be of disjoint documents to be merged, and {len(hashes) - len(set(hashes))} documents are in "
            "two of them: leave one of the lenses out"
        )
    total = sum(lens.n_documents for lens in lenses)
    shares = [lens.n_documents / total for lens in lenses]
    mean = sum((share * lens.jacobians.double() for share, lens in zip(shares, lenses, strict=True)), torch.zeros(()))
    spread = None
    if all(lens.spread is not None for lens in lenses):
        variance = torch.zeros(())
        for share, lens in zip(shares, lenses, strict=True):
            assert lens.spread is not None
            variance = variance + share * (lens.spread.double() ** 2 + (lens.jacobians.double() - mean) ** 2)
        spread = variance.sqrt().float()
    documents: dict[str, Any] = {}
    if len(hashes) == total:
        documents = {name: torch.cat([lens.documents[name] for lens in lenses]) for name in ("norm", "alpha")}
        documents["sha256"] = tuple(hashes)
    texts = dict.fromkeys(str(lens.provenance["text"]) for lens in lenses if "text" in lens.provenance)
    provenance = {**first.provenance, **({"text": " + ".join(texts)} if texts else {})}
    return replace(
        first,
        jacobians=mean.float(),
        n_documents=total,
        spread=spread,
        documents=documents,
        provenance=provenance,
    )
