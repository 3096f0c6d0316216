"""A language model as a user writes one: the members of the protocol, around a module that says nothing of itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from probe.model import LanguageModel


class Own:
    """The members of another model, with a module that holds no more than its blocks."""

    def __init__(self, inner: LanguageModel) -> None:
        self.inner, self.module = inner, nn.ModuleList([*inner.blocks])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
