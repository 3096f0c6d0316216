"""Lenses in files: our own safetensors with provenance, the common .pt, and the reference's checkpoints of sums.

A .pt file is read with `weights_only=True`, which runs no code of the file.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from probe.errors import InputError
from probe.lens.jacobian_lens import JacobianLens
from probe.model.files import require_no_pointer

logger = logging.getLogger("probe.lens")

FORMAT = "probe lens 1"
_OURS = "residual_probe"
_REFERENCE = "jacobian_lens"
_RAW = "raw_huggingface"


def write(lens: JacobianLens, path: Path, dtype: torch.dtype | None = None, *, sums: bool = False) -> Path:
    """Write a lens, whole or not at all.

    Args:
        lens: The lens.
        path: The file, .safetensors or .pt.
        dtype: Of the matrices in a .pt file; None: float16 if all entries fit, else float32.
        sums: Write a checkpoint of sums as the reference does, from which it can go on.

    Returns:
        The path.

    Raises:
        InputError: If the ending is another, or the matrices do not fit the dtype.
    """
    if path.suffix == ".safetensors" and not sums:
        tensors = {"jacobians": lens.jacobians.contiguous()}
        if lens.spread is not None:
            tensors["spread"] = lens.spread.contiguous()
        tensors |= {name: lens.documents[name].contiguous() for name in ("norm", "alpha") if name in lens.documents}
        said = {
            "layers": list(lens.layers),
            "to_layer": lens.to_layer,
            "n_documents": lens.n_documents,
            "sha256": list(lens.documents.get("sha256", ())),
            "provenance": dict(lens.provenance),
        }
        return placed(path, lambda partial: save_file(tensors, partial, {"format": FORMAT, "lens": json.dumps(said)}))
    if path.suffix != ".pt":
        raise InputError(f"the path of a lens must end in .safetensors or .pt, got {path.name}: change the ending")
    if sums:
        content: dict[str, Any] = {
            "jacobian_sum": {layer: lens[layer] * lens.n_documents for layer in lens.layers},
            "n_done": lens.n_documents,
            "next_idx": lens.n_documents,
            "source_layers": list(lens.layers),
            "target_layer": lens.to_layer,
            "skip_first": lens.provenance.get("skip_first", 0),
        }
        return placed(path, lambda partial: torch.save(content, partial))
    largest = float(lens.jacobians.abs().max())
    if dtype is None:
        dtype = torch.float16 if largest <= torch.finfo(torch.float16).max else torch.float32
        if dtype is torch.float32:
            logger.warning("the lens is written in float32, as its largest entry, %.3g, exceeds float16", largest)
    elif not dtype.is_floating_point or largest > torch.finfo(dtype).max:
        raise InputError(
            f"dtype= must hold the largest entry of the lens, {largest:.3g}, got {dtype}: pass torch.float32"
        )
    metadata = {
        "estimator": _REFERENCE if lens.provenance.get("targets", "later") == "later" else "residual_probe_lens",
        "n_prompts": lens.n_documents,
        "processing": {"compatibility_mode": False, "weight_basis": _RAW},
        "hook_convention": "blocks.{layer}.hook_out",
        "corpus": str(lens.provenance.get("text", "not stated")),
        _OURS: json.loads(json.dumps(dict(lens.provenance))),
    }
    if lens.to_layer is not None:
        metadata["target_layer"] = lens.to_layer
    content = {
        "J": {layer: lens[layer].to(dtype) for layer in lens.layers},
        "n_prompts": lens.n_documents,
        "source_layers": list(lens.layers),
        "d_model": lens.d_model,
        "metadata": metadata,
    }
    return placed(path, lambda partial: torch.save(content, partial))


def placed(path: Path, save: Callable[[Path], object]) -> Path:
    """Write a file, whole or not at all.

    Args:
        path: The file.
        save: Writes a file of another name beside it.

    Returns:
        The path.

    Raises:
        InputError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save(partial)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"a lens must be writable to {path}, and is not ({error.strerror}): name another") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(path: Path) -> JacobianLens:
    """Read a lens.

    Args:
        path: A .safetensors file of `write`; a .pt file of matrices, or a checkpoint of sums.

    Returns:
        The lens.

    Raises:
        InputError: If it is none.
    """
    if not path.is_file():
        raise InputError(f"a lens must be a file, and {path} is none: check the path")
    require_no_pointer(path)
    try:
        return _of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)
    except InputError:
        raise
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"a lens must be a .safetensors file of probe, or a .pt file of matrices or sums, and {path} is not "
            f"({reason}): fetch or write it again"
        ) from error


def _of_safetensors(path: Path) -> JacobianLens:
    with safe_open(path, framework="pt") as opened:
        said = (opened.metadata() or {}).get("lens")
        if said is None or opened.metadata().get("format") != FORMAT:
            raise InputError(
                f"a lens in safetensors must be one that probe has written, and {path} holds other tensors: pass the "
                "file of lens.save, or a .pt file"
            )
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    facts = json.loads(said)
    documents: dict[str, Any] = {name: tensors[name] for name in ("norm", "alpha") if name in tensors}
    if facts["sha256"]:
        documents["sha256"] = tuple(facts["sha256"])
    return JacobianLens(
        tuple(facts["layers"]),
        tensors["jacobians"],
        facts["to_layer"],
        facts["n_documents"],
        tensors.get("spread"),
        documents,
        facts["provenance"],
    )


def _of_torch(path: Path) -> JacobianLens:
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping) or not ({"J", "jacobian_sum"} & set(content)):
        keys = ", ".join(map(str, list(content)[:4])) if isinstance(content, Mapping) else type(content).__name__
        raise InputError(
            f'a lens in a .pt file must have matrices under "J" or sums under "jacobian_sum", and {path} has {keys}: '
            "pass another file"
        )
    metadata = dict(content.get("metadata") or {})
    processing = metadata.get("processing") or {}
    if processing.get("compatibility_mode") or processing.get("weight_basis", _RAW) != _RAW:
        raise InputError(
            f"a lens must be fitted on raw weights, and {path} states that they were processed: fit it on a model as "
            "it is published"
        )
    summed = "J" not in content
    count = int(content.get("n_done", content.get("n_prompts", 0)) if summed else content.get("n_prompts", 0))
    if summed and count < 1:
        raise InputError(f"sums of a lens must be of at least one document, and {path} states {count}: fit it further")
    matrices = content["jacobian_sum" if summed else "J"]
    if (
        not isinstance(matrices, Mapping)
        or not matrices
        or not all(isinstance(one, Tensor) for one in matrices.values())
    ):
        raise InputError(f"a lens must hold a matrix for each layer, and {path} does not: fetch it again")
    by_layer = {int(layer): matrix for layer, matrix in matrices.items()}
    layers = tuple(sorted(by_layer))
    shapes = {tuple(matrix.shape) for matrix in by_layer.values()}
    if len(shapes) > 1:
        raise InputError(f"a lens must hold matrices of one width, and {path} has {sorted(shapes)}: fetch it again")
    jacobians = torch.stack([by_layer[layer].float() for layer in layers])
    target = content.get("target_layer", metadata.get("target_layer"))
    return JacobianLens(
        layers,
        jacobians / count if summed else jacobians,
        None if target is None else int(target),
        count,
        provenance=_provenance(content, metadata),
    )


def _provenance(content: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Origin that a file states, in our words."""
    if isinstance(ours := metadata.get(_OURS), Mapping):
        return dict(ours)
    estimator = metadata.get("estimator", _REFERENCE)
    found = {
        "targets": "later" if estimator == _REFERENCE else estimator,
        "model": metadata.get("model_name", content.get("model_name")),
        "text": metadata.get("corpus", content.get("corpus")),
        "skip_first": metadata.get("skip_first_positions", content.get("skip_first")),
        "versions": {"transformer-lens": metadata["transformer_lens_version"]}
        if "transformer_lens_version" in metadata
        else None,
    }
    return {name: value for name, value in found.items() if value is not None}
