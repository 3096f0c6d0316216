"""Checkpoints, read one tensor at a time: safetensors (in shards or not), PyTorch files, GGUF."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from safetensors import safe_open
from torch import Tensor, nn

from probe.boundary import public
from probe.errors import InputError
from probe.model import LanguageModel, load_model
from probe.model.adapters import layout_of
from probe.model.architectures import ExpertStack
from probe.model.control import Control
from probe.model.fetching import fetched
from probe.model.files import WRAPPERS, file_of_each, pickled, require_exact
from probe.model.gguf.tensors import GGUFModel, gguf_model
from probe.model.huggingface import hash_of
from probe.model.loading import configuration
from probe.model.refusals import readable, require_shape
from probe.model.sources import resolve
from probe.weights.reading import ModuleWeights, ProjectedWeights, Weights, of_model, skeleton
from probe.weights.twins import fresh_twin, shuffled_twin

logger = logging.getLogger("probe.weights")


@runtime_checkable
class Reader(Protocol):
    """A reader of tensors by the names of the model's own state dict."""

    def files(self) -> Sequence[Path]:
        """List the files that hold tensors."""

    def read(self, name: str) -> Tensor:
        """Read one tensor."""

    def read_expert(self, name: str, expert: int, stack: ExpertStack) -> Tensor:
        """Read one expert's entries of a tensor."""


@dataclass(frozen=True)
class FromFile:
    """A source that fills parts of a skeleton from a checkpoint.

    Attributes:
        reader: Reader of the checkpoint.
        name: The name that the user gave.
    """

    reader: Reader
    name: str = "this checkpoint"

    def fill(self, block: nn.Module, path: str, block_path: str, skeleton: nn.Module) -> None:
        """Read the tensors of a sub-module.

        Args:
            block: A copied block; its sub-module gets values.
            path: Path of the sub-module inside the block.
            block_path: Path of the block in the skeleton.
            skeleton: Not used.

        Raises:
            InputError: If a tensor is not in the file, is quantised or has another shape.
        """
        part, values = block.get_submodule(path), {}
        for name, expected in part.state_dict().items():
            whole = f"{block_path}.{path}.{name}"
            values[name] = self.reader.read(whole)
            if expected.is_floating_point():
                dtype = str(values[name].dtype).removeprefix("torch.")
                require_exact(self.name, whole, dtype, more=", or load the whole model and pass it instead")
            require_shape(self.name, whole, values[name].shape, expected.shape)
        part.load_state_dict(values, assign=True)

    def piece(self, name: str, expert: int, stack: ExpertStack) -> Tensor:
        """Read an expert's entries of a parameter.

        Args:
            name: The parameter's name in the model.
            expert: Index of the expert.
            stack: How the model stores its experts.

        Returns:
            The entries.
        """
        return self.reader.read_expert(name, expert, stack)


@dataclass(frozen=True)
class ShardReader:
    """Safetensors or PyTorch files of one checkpoint.

    Attributes:
        folder: Folder of the files.
        prefix: Name of the class's trunk; a checkpoint of the trunk alone leaves it out.
        renamings: Transformers' changes of names between file and model, in order.
        conversions: Its changes that join tensors of the file.
    """

    folder: Path
    prefix: str
    renamings: Sequence[Any] = ()
    conversions: Sequence[Any] = ()

    @cached_property
    def _file_of(self) -> Mapping[str, Path]:
        """The file of each stored tensor."""
        return file_of_each(self.folder)

    @cached_property
    def _pickled(self) -> dict[Path, Mapping[str, Tensor]]:
        """The PyTorch files that are open: to open one is to read it, if it is of the old format."""
        return {}

    @cached_property
    def _renamed(self) -> Mapping[str, str]:
        """The name in the file of each tensor whose name transformers changes as it loads."""
        names = {}
        for stored in self._file_of:
            name = stored
            for renaming in self.renamings:
                name = renaming.rename_source_key(name)[0]
            names[name] = stored
        return names

    def files(self) -> Sequence[Path]:
        """List the files that hold tensors."""
        return sorted(set(self._file_of.values()))

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Args:
            name: Name in the model's state dict.

        Returns:
            The tensor, as it is stored.
        """
        return self._opened(self._stored(name))

    def read_expert(self, name: str, expert: int, stack: ExpertStack) -> Tensor:
        """Read one expert's entries of a tensor, and no other expert's.

        Args:
            name: Name of the tensor in the model's state dict.
            expert: Index of the expert.
            stack: How the model stores its experts.

        Returns:
            The entries, as they are stored; of a file that holds each expert for itself, its matrices joined.

        Raises:
            InputError: If the file does not hold them, or in a way that is not read one expert at a time.
        """
        apart = next((one for one in (name, name.removeprefix(f"{self.prefix}.")) if one in self._apart), None)
        if apart is not None:
            conversion, parts = self._apart[apart]
            steps = [(type(step).__name__, getattr(step, "dim", None)) for step in conversion.operations]
            if steps not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
                raise InputError(
                    f"an expert is read alone where its matrices are stored apart or stacked, and {self.folder} stores "
                    f"{name} otherwise: load the whole model and pass it instead"
                )
            wanted = sorted((order, stored) for order, number, stored in parts if number == expert)
            if len(wanted) == len(conversion.source_patterns):
                return torch.cat([self._opened(stored) for _, stored in wanted])
        return self._opened(self._stored(name), lambda rows: stack.piece(expert, rows))

    def _opened(self, stored: str, piece: Callable[[int], slice] | None = None) -> Tensor:
        """A tensor of the file, or a piece of it along its first axis."""
        file = self._file_of[stored]
        with readable(self.folder.name, file):
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    if piece is None:
                        return cast("Tensor", opened.get_tensor(stored))
                    part = opened.get_slice(stored)
                    return cast("Tensor", part[piece(part.get_shape()[0])])
            if file not in self._pickled:
                self._pickled[file] = pickled(file)
            tensor = self._pickled[file][stored]
            return (tensor if piece is None else tensor[piece(len(tensor))]).clone()

    @cached_property
    def _apart(self) -> Mapping[str, tuple[Any, list[tuple[int, int, str]]]]:
        """The tensors that transformers joins of those of single experts.

        For each its conversion, and of each part the rank of its kind, the expert and the name in the file.
        """
        found: dict[str, tuple[Any, list[tuple[int, int, str]]]] = {}
        for renamed, stored in self._renamed.items():
            numbers = re.findall(r"experts\.(\d+)\.", stored)
            for conversion in self.conversions if numbers else ():
                name, pattern = conversion.rename_source_key(renamed)
                if pattern is not None:
                    rank = conversion.source_patterns.index(pattern)
                    found.setdefault(name, (conversion, []))[1].append((rank, int(numbers[-1]), stored))
                    break
        return found

    def _stored(self, name: str) -> str:
        """The name in the file: with or without the trunk's name, or as a part of a larger model."""
        bare = name.removeprefix(f"{self.prefix}.")
        for candidate in (name, bare):
            if candidate in self._file_of:
                return candidate
        for candidate in (name, bare):
            if candidate in self._renamed:
                return self._renamed[candidate]
        inside = [stored for stored in self._file_of if stored.endswith(f".{bare}")]
        if len(inside) != 1:
            raise InputError(
                f"a checkpoint must hold every tensor of its model, and {self.folder} holds {len(inside) or 'no'} "
                f"{name}: load the whole model and pass it instead"
            )
        return inside[0]


@dataclass(frozen=True)
class GGUFReader:
    """A GGUF file, dequantised one tensor at a time.

    Attributes:
        model: The file as transformers' model.
    """

    model: GGUFModel

    def files(self) -> Sequence[Path]:
        """List the parts of the file."""
        return self.model.file.paths

    def read(self, name: str) -> Tensor:
        """Read one tensor.

        Args:
            name: Name in the model's state dict.

        Returns:
            The tensor in float32.
        """
        with readable(self.model.file.path.name, self.model.file.path):
            return self.model.read(name)

    def read_expert(self, name: str, expert: int, stack: ExpertStack) -> Tensor:
        """Refuse: GGUF files stack experts in an order of their own.

        Args:
            name: Name in the model's state dict.
            expert: Index of the expert.
            stack: How the model stores its experts.

        Raises:
            InputError: If it is called at all.
        """
        raise InputError(
            f"an expert is read alone from safetensors or PyTorch files, got {self.model.file.path}: load the whole "
            "model and pass it instead"
        )


@public
def open_weights(
    name: str | Path,
    *,
    revision: str | None = None,
    random_init: int | None = None,
    shuffled_weights: int | None = None,
    trust_remote_code: bool = False,
) -> ModuleWeights:
    """Open a checkpoint for reading one matrix at a time; a model whose matrices are stated is never loaded.

    Args:
        name: Alias, hub id, directory or .gguf file.
        revision: Branch, tag or commit; for a hub id only.
        random_init: Seed of freshly initialised weights of the same architecture, see `fresh_twin`; no file of weights
            is read.
        shuffled_weights: Seed under which the entries of every matrix are permuted; gains are kept.
        trust_remote_code: Run the code that comes with the model's repository.

    Returns:
        The weights. Opening reads the configuration alone.

    Raises:
        InputError: If there is no such model, it cannot be read, or both controls are asked for.
    """
    control = Control(random_init, shuffled_weights)
    source = resolve(str(name), revision)
    whole = gguf_model(Path(source.location)) if source.kind == "gguf" else None
    if whole is None:
        folder = fetched(source, weights=random_init is None, tokenizer=False, code=trust_remote_code)
        config = configuration(source.name, folder, trust_remote_code=trust_remote_code)
    else:
        folder, config = whole.file.path, whole.config
    with readable(source.name, folder):
        module = skeleton(config, trust_remote_code=trust_remote_code)
    layout = layout_of(module)
    if not any(kind.projections for kind in layout.kinds):
        logger.info("nothing states where the matrices of %s are: it is loaded whole and looked at", source.name)
        options: dict[str, Any] = {
            "revision": revision,
            "random_init": random_init,
            "shuffled_weights": shuffled_weights,
        }
        loaded = load_model(name, trust_remote_code=trust_remote_code, **options)
        weights = of_model(loaded)
        assert isinstance(weights, ModuleWeights)
        return weights
    reader: Reader
    if whole is not None:
        reader = GGUFReader(whole)
    else:
        reader = ShardReader(folder, str(getattr(module, "base_model_prefix", "")), *_changes(module))
    opened = ModuleWeights(source.name, module, layout, source.description, FromFile(reader, source.name))
    if control.random_init is not None:
        return fresh_twin(opened, control.random_init)
    return opened if control.shuffled_weights is None else shuffled_twin(opened, control.shuffled_weights)


def _changes(module: Any) -> tuple[list[Any], list[Any]]:
    """Transformers' changes of names alone, and those that join or cut tensors."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    changes = get_model_conversion_mapping(module, WRAPPERS)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    return renamings, [change for change in changes if isinstance(change, WeightConverter)]


@public
def weights_of(model: str | Path | LanguageModel | Weights) -> Weights:
    """Return the weights of anything that names or is a model.

    Args:
        model: An alias, hub id, directory or .gguf file, which is opened without being loaded; a loaded model; or
            weights, which are returned as they are.

    Returns:
        Its weights.
    """
    if isinstance(model, str | Path):
        return open_weights(model)
    if isinstance(model, Weights):
        return model
    return of_model(model)


def weight_hash(weights: Weights) -> str:
    """Hash the source of a model's matrices with SHA-256.

    Args:
        weights: Weights from `open_weights` or `weights_of`.

    Returns:
        The hash in hexadecimal: of the files or of the loaded weights, every byte of which is read once, or of
        configuration and seed. Of a user's own `LanguageModel` it is the model's own hash.

    Raises:
        TypeError: If the weights are of none of these.
    """
    if isinstance(weights, ProjectedWeights):
        return weights.model.weight_hash
    if not isinstance(weights, ModuleWeights):
        raise TypeError(f"only weights that this library makes have a hash, got {type(weights).__name__}")
    filler, digest = weights.filler, hashlib.sha256(f"permuted {weights.permuted}".encode())
    if isinstance(filler, FromFile):
        for path in filler.reader.files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    elif filler is None:
        digest.update(hash_of(weights.module).encode())
    else:
        digest.update(f"{filler} {weights.config.to_json_string()}".encode())
    return digest.hexdigest()
