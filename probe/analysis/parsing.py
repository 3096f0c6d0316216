"""A dataclass -> options of a command line, their help, and scripts by which shells complete them."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from probe.errors import InputError

_WRONG = 2  # the status with which tyro ends after wrong arguments

_PLAINER = {
    r"invalid literal for int\(\) with base 10: ": "must be a whole number, got ",
    r"could not convert string to float: ": "must be a number, got ",
}
"""What Python says of a number that is none -> what we say."""

_Options = TypeVar("_Options")


def parse(options: type[_Options], program: str, argv: Sequence[str] | None) -> _Options:
    """Read a command line into a dataclass.

    Args:
        options: The dataclass. Its fields become options, their docstrings the help; its own docstring says what the
            command does, and its mapping `examples`, if it has one, options as they are typed and what they do.
        program: The command, as its help shows it.
        argv: Arguments; those of this process by default.

    Returns:
        The options.

    Raises:
        InputError: If an option is wrong; in one line.
        SystemExit: If After --help.
    """
    description = _wrapped(program, inspect.getdoc(options) or "", getattr(options, "examples", {}))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _tyro(options, program, description, argv)
    except SystemExit as stop:
        if stop.code == _WRONG:
            raise InputError(_one_line(said.getvalue()).removeprefix(f"{options.__name__}: ")) from None
        raise


def completion(options: type[Any], program: str, shell: str) -> str:
    """Write a script by which a shell completes a command line.

    Args:
        options: What the command line is read into.
        program: The command.
        shell: Bash, zsh or fish.

    Returns:
        The script.
    """
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        _tyro(options, program, "", ["--tyro-write-completion", shell, "-"])
    return script.getvalue()


def _tyro(options: type[_Options], program: str, description: str, argv: Sequence[str] | None) -> _Options:
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR")
    return tyro.cli(
        options,
        prog=program,
        description=description,
        args=argv,
        config=(tyro.conf.OmitArgPrefixes,),
        registry=_registry(),
    )


def _wrapped(program: str, description: str, examples: Mapping[str, str]) -> str:
    """Description and examples in lines of a terminal; tyro joins lines, save those that begin with a space."""
    text = re.split(r"\n(?:Raises|Attributes):\n", description)[0]
    lines = [textwrap.fill(part, 79, initial_indent=" ", subsequent_indent=" ") for part in text.split("\n\n")]
    if examples:
        lines.append("\nExamples:")
    lines += [f"  {program} {options}\n      {what}" for options, what in examples.items()]
    return "\n".join(lines)


def _one_line(box: str) -> str:
    """The error, out of the box of several lines that tyro draws: its sections stand between rules."""
    lines = [line.strip(" │") for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()]
    parts = itertools.groupby(lines, lambda line: line[:1] in "╭╰" or not line.strip("─-"))
    sections = [list(group) for rule, group in parts if not rule]
    wrong = " ".join(sections[0 if "╭" in box else 1]).removeprefix("Error parsing ")  # the first is a title otherwise
    meant = [line.split()[0] for section in sections for line in section if line.startswith("--")]
    hint = f"perhaps {' or '.join(meant)}; " if meant and wrong.startswith("Unrecognized") else ""
    for said, meant_by_it in _PLAINER.items():
        wrong = re.sub(said, meant_by_it, wrong)
    return f"{wrong.rstrip('.')}; {hint}--help lists the options"


def _registry() -> ConstructorRegistry:
    """Tuples are written as comma lists, and an absent value as none."""
    registry = ConstructorRegistry()
    registry.primitive_rule(_comma_list)
    registry.primitive_rule(_optional)
    return registry


def _comma_list(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    parts = typing.get_args(info.type)
    if typing.get_origin(info.type) is not tuple or len(parts) != 2 or parts[1] is not Ellipsis:
        return None
    kind = parts[0]
    name = kind.__name__.upper()
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{name},{name},...",
        instance_from_str=lambda words: tuple(kind(item.strip()) for item in words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(item, kind) for item in value),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    kinds = [part for part in typing.get_args(info.type) if part is not types.NoneType]
    if typing.get_origin(info.type) is not types.UnionType or len(kinds) != 1 or not isinstance(kinds[0], type):
        return None
    kind = kinds[0]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar={int: "INT", float: "FLOAT", Path: "PATH"}.get(kind, "NAME"),
        instance_from_str=lambda words: None if words[0] == "none" else kind(words[0]),
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )
