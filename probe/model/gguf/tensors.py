"""The tensors of a GGUF file as those of transformers' model: each has its place and none is missing, or a refusal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.errors import InputError
from probe.model.gguf.container import GGUFFile, open_gguf
from probe.model.gguf.facts import ARCHITECTURES, configuration, taken
from probe.model.gguf.rotation import FACTORS
from probe.model.making import MAKING

_SINCE = "5.20"
"""The first version of transformers whose functions for GGUF are those that are used here."""
_EXPERTS = re.compile(r".*\.layers\.(\d+)\..*\bexperts\.(gate_up|down)_proj")
_ZERO = re.compile(r"blk\.\d+\.(attn_(?:q|k|v|qkv|output)\.bias)")
"""Biases that llama.cpp's models take as zero where a file has none."""


@dataclass(frozen=True)
class Recipe:
    """The making of a tensor of the model.

    Attributes:
        stored: Names in the file; none for a bias that the file leaves out.
        make: Function of these, in float32.
    """

    stored: Sequence[str]
    make: Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class GGUFModel:
    """A GGUF file and transformers' model of it.

    Attributes:
        file: The file.
        config: The configuration that it states.
        recipes: How each tensor of the model is made, by its name in the state dict.
        shapes: Shape of each tensor.
    """

    file: GGUFFile
    config: Any
    recipes: Mapping[str, Recipe]
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> Tensor:
        """Dequantise one tensor of the model.

        Args:
            name: Its name in the state dict.

        Returns:
            The values in float32, contiguous.

        Raises:
            InputError: If the file does not give it.
        """
        if name not in self.recipes:
            raise InputError(
                f"a checkpoint must hold every tensor of its model, and {self.file.path} holds no {name}: fetch it "
                "again"
            )
        recipe, shape = self.recipes[name], self.shapes[name]
        made = recipe.make([torch.from_numpy(self.file.read(stored).copy()) for stored in recipe.stored])
        if not recipe.stored:
            made = made.new_zeros(shape)
        if [size for size in made.shape if size != 1] != [size for size in shape if size != 1]:
            raise self._of_another_size(name)
        return made.reshape(shape).contiguous()

    def _of_another_size(self, name: str) -> InputError:
        stored = self.recipes[name].stored
        sizes = ", ".join(f"{part} {self.file.shape(part)}" for part in stored)
        return InputError(
            f"the tensors of a GGUF file must have the sizes that its keys state, and {self.file.path} holds {sizes} "
            f"where {name} is {self.shapes[name]}: load the model from its original weights"
        )

    def require_whole(self) -> None:
        """Refuse a file that is not the model's: something missing, of another size, or without a place.

        Raises:
            InputError: If it is not.
        """
        missing = [name for name in self.shapes if name not in self.recipes]
        if missing:
            raise InputError(
                f"a GGUF file must hold every tensor of its model, and {self.file.path} lacks {len(missing)} of "
                f"{len(self.shapes)} ({missing[0]} ...): fetch it again"
            )
        used = {stored for recipe in self.recipes.values() for stored in recipe.stored}
        spare = [name for name in self.file.tensors if name not in used and not _has_no_place(self, name)]
        if spare:
            raise InputError(
                f"every tensor of a GGUF file must have a place in transformers' model, and {len(spare)} of "
                f"{self.file.path} have none in {self.config.model_type} ({spare[0]} ...): load the model from its "
                "original weights"
            )
        for name, recipe in self.recipes.items():
            held = sum(math.prod(self.file.shape(stored)) for stored in recipe.stored)
            if recipe.stored and held != math.prod(self.shapes[name]):
                raise self._of_another_size(name)


def _has_no_place(model: GGUFModel, name: str) -> bool:
    """Tell whether a tensor is rightly left out: the configuration took it, or it predicts tokens further ahead."""
    if name in FACTORS:
        return model.file.architecture in ARCHITECTURES and ARCHITECTURES[model.file.architecture].rotary
    ahead = model.file.value(f"{model.file.architecture}.nextn_predict_layers", 0)
    block = re.match(r"blk\.(\d+)\.", name)
    return bool(ahead) and block is not None and int(block[1]) >= model.config.num_hidden_layers


def gguf_model(path: Path) -> GGUFModel:
    """Open a GGUF file as transformers' model, without reading its weights.

    Args:
        path: The file, or any part of it.

    Returns:
        The model: whole, and nothing of the file is left over.

    Raises:
        InputError: If it is not.
    """
    _require_reader(path)
    from transformers import AutoModelForCausalLM
    from transformers.integrations.gguf import is_gguf_arch_supported

    file = open_gguf(path)
    config = configuration(file)
    with taken(file), MAKING, torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    tied = set(getattr(module, "_tied_weights_keys", None) or {}) if config.tie_word_embeddings else set()
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items() if name not in tied}
    newer = is_gguf_arch_supported(file.architecture)
    recipes = _converted(file, config) if newer else _mapped(file, config, shapes)
    model = GGUFModel(file, config, {name: recipes[name] for name in shapes if name in recipes}, shapes)
    model.require_whole()
    return model


def _require_reader(path: Path) -> None:
    """Refuse versions of transformers that read GGUF by other functions than those that are used here."""
    import transformers

    try:
        from transformers.integrations.gguf import convert_gguf_tokenizer  # noqa: F401
    except ImportError:
        raise InputError(
            f"a GGUF file is read by transformers {_SINCE} or newer, and {transformers.__version__} is installed: run "
            f"pip install 'transformers>={_SINCE}', or name a directory or an id of the hub instead of {path.name}"
        ) from None


# transformers' older way: names by gguf's own tables, and a function for an architecture


def _mapped(file: GGUFFile, config: Any, names: Iterable[str]) -> dict[str, Recipe]:
    import gguf
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    architecture = file.architecture
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    recipes = {}
    for name in names:
        # Some converters start from the trunk, whose names lack the first word.
        tries = (table.get_name(one, (".weight", ".bias")) for one in (name, name.partition(".")[2]))
        stored = next(filter(None, tries), "")
        if stored in file.tensors:
            recipes[name] = Recipe((stored,), _processed(stored, processor, config))
        elif (match := _ZERO.fullmatch(stored)) is not None and not _anywhere(file, match[1]):
            recipes[name] = Recipe((), lambda _: torch.zeros(0))
        elif (expert := _EXPERTS.fullmatch(name)) is not None:
            kinds = ("gate", "up") if expert[2] == "gate_up" else ("down",)
            stacks = tuple(f"blk.{expert[1]}.ffn_{kind}_exps.weight" for kind in kinds)
            if all(stack in file.tensors for stack in stacks):
                recipes[name] = Recipe(stacks, lambda parts: torch.cat(list(parts), dim=1))
    return recipes


def _anywhere(file: GGUFFile, suffix: str) -> bool:
    return any(name.startswith("blk.") and name.endswith(f".{suffix}") for name in file.tensors)


def _processed(stored: str, processor: Any, config: Any) -> Callable[[Sequence[Tensor]], Tensor]:
    if config.model_type == "falcon" and stored.endswith((".attn_qkv.weight", ".attn_qkv.bias")):
        return lambda parts: _grouped(parts[0], config.num_attention_heads, config.num_kv_heads)
    if stored == "output.weight":
        return lambda parts: parts[0]

    def make(parts: Sequence[Tensor]) -> Tensor:
        values = processor.process(parts[0].numpy(), stored, tensor_key_mapping={}, parsed_parameters={}).weights
        return torch.from_numpy(values)

    return make


def _grouped(joined: Tensor, heads: int, groups: int) -> Tensor:
    """Falcon's queries, keys and values group by group, from all queries, all keys, all values."""
    width = len(joined) // (heads + 2 * groups)
    q, k, v = joined.split([heads * width, groups * width, groups * width])
    parts = [part.reshape(groups, -1, width, *joined.shape[1:]) for part in (q, k, v)]
    return torch.cat(parts, dim=1).reshape(joined.shape)


# transformers' newer way: renamings, and chains of operations


def _converted(file: GGUFFile, config: Any) -> dict[str, Recipe]:
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    from transformers.integrations.gguf import get_gguf_conversion_mapping

    mapping = get_gguf_conversion_mapping(file.architecture, config)
    renamings = [change for change in mapping if isinstance(change, WeightRenaming)]
    converters = [change for change in mapping if isinstance(change, WeightConverter)]
    found: dict[str, dict[str | None, str]] = {}
    for stored in file.tensors:
        name, pattern = rename_source_key(stored, renamings, converters)
        found.setdefault(name, {})[pattern] = stored
    recipes = {}
    for name, by_pattern in found.items():
        converter = next((one for one in converters if set(by_pattern) & set(one.source_patterns)), None)
        if converter is None:
            if len(by_pattern) == 1:
                recipes[name] = Recipe(tuple(by_pattern.values()), lambda parts: parts[0])
        elif set(by_pattern) == set(converter.source_patterns):
            stored_names = tuple(by_pattern[pattern] for pattern in converter.source_patterns)
            recipes[name] = Recipe(stored_names, _chained(converter, name))
    return recipes


def _chained(converter: Any, name: str) -> Callable[[Sequence[Tensor]], Tensor]:
    def make(parts: Sequence[Tensor]) -> Tensor:
        values: dict[str, Any] = {key: [part] for key, part in zip(converter.source_patterns, parts, strict=True)}
        for operation in converter.operations:
            values = operation.convert(
                values,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                full_layer_name=name,
            )
        (made,) = values.values()
        result: Tensor = made[0] if isinstance(made, list) else made
        return result

    return make
