"""A study as its TOML defines it, read and checked before anything runs.

    title = "…"                       # of the paper
    arxiv = "2604.02459"
    claims = ["updates.alignment"]    # each is tested by some run

    [[runs]]
    analysis = "tokenwise"
    models = ["pythia-160m"]          # one run each; none for an analysis that reads no model
    random_init = [0]                 # optional: and one of each model's fresh twin, a control
    label = "toys"                    # optional: a name for a run without a model
    [runs.settings]                   # fields of the analysis's Config
    dataset = "wikitext-2"

An unknown key is refused with the one that is meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from probe import analyses
from probe.analysis.config import Config, ModelConfig
from probe.analysis.fields import UnfitError, fitted
from probe.errors import InputError
from probe.model.names import BUNDLED
from probe.runs.provenance import model_in_words
from probe.text.names import DATASETS

State: TypeAlias = Literal["pretrained", "trained here", "untrained"]

_Made = typing.TypeVar("_Made")

STUDY_KEYS = {"title": str, "arxiv": str, "claims": tuple[str, ...], "runs": tuple[dict[str, Any], ...]}
"""The keys of a study and their types."""
RUN_KEYS = ("analysis", "models", "random_init", "label", "settings")
BESIDE = {"model": "models", "random_init": "random_init"}
"""Fields of a configuration that a study names beside the settings."""


@dataclass(frozen=True)
class Member:
    """One run of a study.

    Attributes:
        analysis: Name of the analysis.
        label: What tells it from the analysis's other runs.
        config: Its configuration.
    """

    analysis: str
    label: str
    config: Config

    @property
    def name(self) -> str:
        """Its name, and its directory within the study's."""
        return f"{self.analysis}/{self.label}"

    @property
    def model(self) -> str:
        """The model in words."""
        if not isinstance(self.config, ModelConfig):
            return self.label
        config = self.config
        return model_in_words(str(config.model), config.revision, config.random_init, config.shuffled_weights)

    @property
    def state(self) -> State:
        """The origin of its weights: they came trained, were trained for this project, or are not trained."""
        config = self.config
        if not isinstance(config, ModelConfig) or config.random_init is not None:
            return "trained here" if not isinstance(config, ModelConfig) else "untrained"
        if config.shuffled_weights is not None:
            return "untrained"
        return "trained here" if str(config.model).startswith(BUNDLED) else "pretrained"


@dataclass(frozen=True)
class Study:
    """A paper's study.

    Attributes:
        name: The file's name without suffix.
        title: Of the paper.
        arxiv: Its identifier.
        claims: Ids of the claims to be tested, in the order in which they are read.
        members: Its runs, in the order in which they are done.
    """

    name: str
    title: str
    arxiv: str
    claims: tuple[str, ...]
    members: tuple[Member, ...]


def read(path: Path, *, text: Path | None = None, dataset: str | None = None) -> Study:
    """Read a study from its TOML.

    Args:
        path: The file.
        text: A file that replaces the data set of every run that reads a text.
        dataset: A data set that does.

    Returns:
        The study.

    Raises:
        InputError: If the file cannot be read, or anything in it is unknown, missing, of another type or named twice.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"a study is a TOML file, but {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"a study is a TOML file, but {path} is not: {error}; correct it there") from None
    _check_keys(table, STUDY_KEYS, f"the study {path}")
    for key, kind in STUDY_KEYS.items():
        if key not in table:
            raise InputError(f"a study names its title, arxiv, claims and runs, but {path} has no {key}: add it")
        table[key] = _value(table[key], kind, f"{key} of {path}")
    members = [
        member
        for place, run in enumerate(table["runs"], start=1)
        for member in _members(run, f"run {place} of {path.name}")
    ]
    members = [dataclasses.replace(member, config=_on_text(member.config, text, dataset)) for member in members]
    _check_once(table["claims"], f"each claim is listed once in {path.name}")
    _check_once([member.name for member in members], f"each run of {path.name} has a name of its own (give a label)")
    return Study(path.stem, table["title"], table["arxiv"], table["claims"], tuple(members))


def _members(run: Mapping[str, Any], where: str) -> list[Member]:
    """The runs of one table: one a model, and one a fresh twin of it."""
    _check_keys(run, RUN_KEYS, where)
    if "analysis" not in run:
        raise InputError(f"a run names its analysis, but {where} does not: add one of {', '.join(analyses.names())}")
    name = _value(run["analysis"], str, f"analysis of {where}")
    kind = analyses.config_of(name)
    settings = _settings(_value(run.get("settings", {}), dict[str, Any], f"settings of {where}"), kind, where)
    models = _value(run.get("models", []), tuple[str, ...], f"models of {where}")
    seeds = _value(run.get("random_init", []), tuple[int, ...], f"random_init of {where}")
    label = _value(run.get("label", ""), str, f"label of {where}")
    if issubclass(kind, ModelConfig) != bool(models):
        reads = "reads models, name them: models = [...]" if not models else "reads no model: leave models out"
        raise InputError(f"a run names models where its analysis reads some, but in {where} {name} {reads}")
    chosen: list[dict[str, Any]] = [
        {"model": model, "random_init": seed} for model in models for seed in (None, *seeds)
    ]
    return [
        Member(name, _label(choice, label, name), _made(kind, settings | choice, where)) for choice in chosen or [{}]
    ]


def _label(choice: Mapping[str, Any], label: str, analysis: str) -> str:
    """A file name for a run: its model and the seed of fresh weights, then what the study calls it."""
    if not choice:
        return _file_name(label or analysis)
    parts = [choice["model"], *([f"init-{choice['random_init']}"] if choice["random_init"] is not None else [])]
    return _file_name("-".join([*parts, *([label] if label else [])]))


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def _settings(table: Mapping[str, Any], kind: type[Any], where: str) -> dict[str, Any]:
    """The table's entries as fields of a configuration."""
    for key, instead in BESIDE.items():
        if key in table:
            raise InputError(
                f"settings hold no {key}, but those of {where} do: name it beside them, as {instead} = [...]"
            )
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    _check_keys(table, [name for name in names if name not in BESIDE], f"settings of {where}")
    return {name: _setting(value, hints[name], f"{name} in the settings of {where}") for name, value in table.items()}


def _setting(value: Any, kind: Any, where: str) -> Any:
    """A value as a configuration takes it; a table is a dataclass there."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return _value(value, kind, where)
    return _made(kind, _settings(_value(value, dict[str, Any], where), kind, where), where)


def _made(kind: type[_Made], fields: Mapping[str, Any], where: str) -> _Made:
    try:
        return kind(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _on_text(config: Config, text: Path | None, dataset: str | None) -> Config:
    """The configuration on another text, if it reads one."""
    reads = getattr(config, "text", None) is not None or getattr(config, "dataset", None) is not None
    if not reads or (text is None and dataset is None):
        return config
    changes: dict[str, Any] = {"text": text, "dataset": dataset, "column": None}
    if text is not None or dataset not in DATASETS:
        changes["split"] = None  # the one of the study is a split of its data set
    return dataclasses.replace(config, **changes)


def _value(value: Any, kind: Any, where: str) -> Any:
    """A value from a TOML as a type wants it; of another type it is refused."""
    try:
        return fitted(value, kind)
    except UnfitError as error:
        raise InputError(f"{where} must be {error.wanted}, got {error.got}: correct it there") from None


def _check_keys(table: Iterable[str], known: Iterable[str], where: str) -> None:
    names = list(known)
    for key in table:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            cure = f"did you mean {close[0]}?" if close else f"it knows {', '.join(names)}"
            raise InputError(f"{where} must hold known keys only, got {key!r}: {cure}")


def _check_once(names: Iterable[str], invariant: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{invariant}, but {twice[0]} comes more than once")
