"""Marks of tests that rest on what older versions of a library do not have."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version


def since(version: str, why: str) -> pytest.MarkDecorator:
    """Skip a test with a transformers older than a version, in which the type is missing or runs otherwise."""
    older = Version(transformers.__version__) < Version(version)
    return pytest.mark.skipif(older, reason=f"transformers before {version}: {why}")
