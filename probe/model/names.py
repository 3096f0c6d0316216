"""Names of models that are written in more than one place; nothing is imported, for options and their help."""

from __future__ import annotations

DEFAULT_MODEL = "smollm2-135m-instruct-q4"
"""The model of every command and call that names none."""
BUNDLED = "bundled/"
"""Prefix of the names of the small models that ship with the library."""
