"""The only module that calls TransformerLens: its adapters as further layouts, its models as input.

These are internals of TransformerLens; `pyproject.toml` states the versions that have them. Importing it
takes seconds, so nothing here imports it before it is needed. (`sources` reads its alias table, a data file.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from probe.errors import InputError
from probe.model.architectures import (
    ARCHITECTURES,
    BlockLayout,
    Layout,
    Matrix,
    Projection,
    SitePath,
    require_causal_stream,
)

logger = logging.getLogger("probe.model")


def is_bridge(model: object) -> bool:
    """Say whether a loaded model is a `TransformerBridge`.

    Args:
        model: A loaded model.

    Returns:
        True for an object of a TransformerLens class around a Hugging Face module. Parts of that module were replaced,
        and TransformerLens's own attention code runs, so that this code is what is measured.
    """
    ours = any(kind.__module__.startswith("transformer_lens.") for kind in type(model).__mro__)
    return ours and hasattr(model, "original_model")


@dataclass(frozen=True)
class AdapterProjection:
    """One of the matrices that an adapter cuts out of a joint one, a `Matrix`.

    Attributes:
        module: Path of the module that holds the joint matrix, inside the block.
        part: Index of the piece.
        split: The adapter's function from that module to linear modules.
    """

    module: str
    part: int
    split: Callable[[nn.Module], tuple[nn.Linear, ...]]

    def weight(self, block: nn.Module, heads: int) -> Tensor:
        """Return the matrix as (out, in).

        Args:
            block: The block that holds it.
            heads: Not used: the adapter knows the number.

        Returns:
            A copy of that part.
        """
        return self.split(block.get_submodule(self.module))[self.part].weight.detach()


def layout_of(module: nn.Module) -> Layout:
    """Find the stated layout of a Hugging Face causal LM: a row of `ARCHITECTURES`, or its TransformerLens adapter.

    Args:
        module: The causal LM; its parameters may be on the "meta" device.

    Returns:
        Its layout, with the list of blocks where this module has it: a row's path, perhaps inside a model of several
        parts. A layout without paths where neither states one.

    Raises:
        InputError: If the configuration says that the model is not causal or has no stream of constant width.
    """
    config: Any = module.config
    text_config = config.get_text_config(decoder=True)
    require_causal_stream(text_config)
    row = ARCHITECTURES.get(text_config.model_type)
    if row is not None:
        return replace(row, blocks=_inside(module, row.blocks))
    try:
        return layout(module)
    except InputError as error:
        logger.info("%s", error)
        return Layout("", "", "")


def _inside(module: nn.Module, path: str) -> str:
    """Find a path of the text model in a module: as it is, or inside the decoder of a model of several parts."""
    lists = [name for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
    if path in lists:
        return path
    last = path.rpartition(".")[2]
    decoder = getattr(module, "get_decoder", lambda: None)()
    names = {name for name, part in module.named_modules() if part is decoder}
    return next((f"{name}.{last}" for name in names if f"{name}.{last}" in lists), path)


def layout(module: nn.Module) -> Layout:
    """Translate the TransformerLens adapter of a model's class into a layout; the module itself is not changed.

    Args:
        module: A Hugging Face causal LM.

    Returns:
        The layout. What an adapter does not name (a site, a matrix) is left out.

    Raises:
        InputError: If TransformerLens has no adapter for the class, or its blocks are not one list.
    """
    try:
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
    except ImportError as error:
        raise InputError(
            f"layouts are taken from TransformerLens 4.3 to 4.x, and version {version('transformer-lens')} is "
            f"installed ({error}): run pip install 'transformer-lens>=4.3,<5'"
        ) from error

    name = type(module).__name__
    dtype = next(module.parameters()).dtype
    try:
        config = build_bridge_config_from_hf(module.config, name, name, dtype)
        parts = ArchitectureAdapterFactory.select_architecture_adapter(config).component_mapping
        block, norm, head, embedding = (parts[key] for key in ("blocks", "ln_final", "unembed", "embed"))
    except Exception as error:
        raise InputError(
            f"a model must be of an architecture with a known layout, and {name} has none here nor in TransformerLens "
            f"({error}); use a causal LM of another family"
        ) from error
    inner = block.submodules
    parallel = type(block).__name__.startswith("Parallel")
    return Layout(
        blocks=block.name,
        embedding=embedding.name,
        final_norm=norm.name,
        head=head.name,
        kinds=(
            BlockLayout(
                sites=_sites(block),
                projections=_projections(inner),
                parallel=parallel,
                recurrent="attn" not in inner,
            ),
        ),
    )


def _sites(block: Any) -> dict[str, SitePath]:
    names = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_mixer_out")
    sites = {name: _site(block, block.hook_aliases[name]) for name in names if name in block.hook_aliases}
    return {name: site for name, site in sites.items() if site is not None}


def _site(block: Any, alias: Any) -> SitePath | None:
    """An alias is a path of components that ends in the side, for example "ln1_post.hook_out"."""
    *components, side = str(alias).split(".")
    path: list[str] = []
    for component in components:
        block = block.submodules.get(component)
        if block is None:
            return None
        # A component without a name groups modules that sit directly in the block.
        path += [block.name] if block.name else []
    return SitePath(".".join(path), "input" if side == "hook_in" else "output") if path else None


_JOINT = {("q", "k", "v"): "split_qkv_matrix", ("gate", "up"): "split_gate_up_matrix"}
_RENAMED = {"in": "up", "out": "down"}


def _projections(inner: dict[str, Any]) -> dict[str, Matrix]:
    projections: dict[str, Matrix] = {}
    for kind in ("attn", "mlp", "mixer"):
        part = inner.get(kind)
        if part is None:
            continue
        prefix = "" if part.name is None else f"{part.name}."
        for name, linear in part.submodules.items():
            if kind == "mixer":
                name = name.removesuffix("_proj")
            elif kind == "mlp":
                name = _RENAMED.get(name, name)
            projections[name] = Projection(prefix + str(linear.name))
        for names, function in _JOINT.items():
            split = getattr(part, function, None)
            if split is not None:
                projections |= {name: AdapterProjection(part.name, index, split) for index, name in enumerate(names)}
    if "up" not in projections:
        # The gate of a mixture of experts chooses experts; it is not a projection of an MLP.
        projections.pop("gate", None)
    order = ("q", "k", "v", "o", "gate", "up", "down", "in", "x", "dt", "out")
    return {name: projections[name] for name in order if name in projections}
