"""What the libraries raise while they read a model, in one sentence that says what is wrong and how to mend it."""

from __future__ import annotations

import errno
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, errors, get_token

from probe.errors import InputError

_INSTALL = re.compile(r"pip install [^`'\"();,\n]*[^`'\"();,.\s]")
_DAMAGE = (json.JSONDecodeError, UnicodeDecodeError, EOFError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError)


@contextmanager
def readable(name: str, location: Path | str, *, what: str = "model") -> Iterator[None]:
    """Turn what the libraries raise while they read a model or a data set into one sentence.

    Args:
        name: The name that the user gave.
        location: The file or folder that is read, or the id on the hub.
        what: "model" or "data set".

    Yields:
        None.

    Raises:
        InputError: If reading failed inside the context.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # transformers, tokenizers, gguf and safetensors each raise their own exceptions
        refused = refusal(name, location, error, what=what)
        raise refused from error


def refusal(name: str, location: Path | str, error: BaseException, *, what: str = "model") -> InputError:
    """Say what an exception means for the user.

    Args:
        name: The name that the user gave.
        location: The file or folder that was read, or the id on the hub.
        error: The exception; what caused it counts first, because transformers wraps what the hub's client raises.
        what: "model" or "data set".

    Returns:
        The error to raise.
    """
    causes, cause = [error], error.__cause__
    while cause is not None and cause not in causes:
        causes, cause = [*causes, cause], cause.__cause__
    for cause in reversed(causes):
        if explained := _of_the_hub(name, location, cause, what):
            return explained
        for explain in (_of_the_disk, _of_packages, _of_code, _of_damage)[: None if what == "model" else 2]:
            if explained := explain(name, location, cause):
                return explained
    return InputError(
        f"the {what} {name} must be readable, and {location} is not ({first_line(error)}): if its files are whole, "
        "name another; else fetch them again"
    )


def _of_the_hub(name: str, location: Path | str, error: BaseException, what: str) -> InputError | None:
    page = f"{constants.ENDPOINT}/{'datasets/' if what == 'data set' else ''}{location}"
    has_token = get_token() is not None
    match error:
        case errors.GatedRepoError():
            unless = " for the account of the given token" if has_token else ""
            return InputError(
                f"the {what} {name} must be open to you, and the hub gates it{unless}: ask for access at {page}, then "
                "give a token by hf auth login or in the variable HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            return InputError(
                f"the {what} {name} must have the revision that is asked for, and {location} does not on the hub: "
                f"choose one of {page}/tree/main"
            )
        case errors.RepositoryNotFoundError():
            whom = "with the given token" if has_token else "without a token"
            return InputError(
                f"the {what} {name} must be on the hub and open to you, and {whom} there is no {location}: check the "
                f"name at {page}, and of a private repository give a token by hf auth login or in the variable HF_TOKEN"
            )
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            return InputError(
                f"the {what} {name} must be here or on a hub that answers, and files of {location} are not in the "
                "local hub cache and the hub does not answer: run once on a machine with a network"
            )
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return InputError(
                f"the hub must take the given token for {name}, and does not ({first_line(error)}): give another by "
                "hf auth login or in the variable HF_TOKEN, with leave to read it"
            )
        case errors.HfHubHTTPError():
            return InputError(f"the hub must give the files of {name}, and says {first_line(error)}: try again later")
    if type(error).__module__.partition(".")[0] in ("httpx", "httpx2"):
        return InputError(
            f"the hub must give the files of {name}, and the line broke ({first_line(error)}): try again later"
        )
    return None


def _of_the_disk(name: str, location: Path | str, error: BaseException) -> InputError | None:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return InputError(
            f"the disk must have room for the files of {name}, and it is full (the hub cache is "
            f"{constants.HF_HUB_CACHE}): make room, or set HF_HOME to a folder on another disk"
        )
    if isinstance(error, PermissionError):
        return InputError(
            f"the files of {name} must be open to you, and {error.filename or location} is not "
            f"({error.strerror or first_line(error)}): change its permissions, or set HF_HOME to another folder"
        )
    return None


def _of_packages(name: str, location: Path | str, error: BaseException) -> InputError | None:
    """Missing packages: most of transformers' messages hold the command that installs them."""
    if not isinstance(error, ImportError):
        return None
    command = _INSTALL.search(str(error))
    if command is None and not isinstance(error, ModuleNotFoundError):
        return InputError(
            f"the code of {name} must run with the installed packages, and it does not ({first_line(error)}): install "
            "the versions that its page names"
        )
    install = f"pip install {str(error.name).partition('.')[0]}" if command is None else command[0]
    return InputError(
        f"the packages that {name} needs must be installed, and one is not ({first_line(error)}); run {install}"
    )


def _of_code(name: str, location: Path | str, error: BaseException) -> InputError | None:
    # Of all errors of transformers, only those that ask for leave to run a repository's code name the option.
    return code_refused(name, location) if "trust_remote_code" in str(error) else None


def _of_damage(name: str, location: Path | str, error: BaseException) -> InputError | None:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "nsupported" in text:
        return InputError(
            f"a PyTorch file must hold tensors alone, and {location} holds other objects, which are not loaded because "
            f"they could run code: save the weights of {name} as safetensors"
        )
    damaged = isinstance(error, _DAMAGE) or type(error).__name__ == "SafetensorError"
    if damaged or "PytorchStreamReader" in text or "not a valid JSON file" in text:
        return InputError(
            f"the model {name} must be readable, and {location} is not ({first_line(error)}): it is truncated or "
            "corrupt; fetch it again"
        )
    return None


def code_refused(name: str, location: Path | str) -> InputError:
    """Refuse a repository's own code, which runs on request alone.

    Args:
        name: The name that the user gave.
        location: The folder or the id on the hub.

    Returns:
        The error to raise.
    """
    return InputError(
        f"a model must run on the code of transformers unless you say otherwise, and {name} brings code of its own: "
        f"read it in {location}, and if you trust it pass trust_remote_code=True"
    )


def require_shape(name: str, tensor: str, stored: Sequence[int], expected: Sequence[int]) -> None:
    """Refuse a tensor of another shape than its model's.

    Args:
        name: The name that the user gave.
        tensor: Name of the tensor.
        stored: Its shape in the file.
        expected: Its shape by the configuration.

    Raises:
        InputError: If they differ.
    """
    if tuple(stored) != tuple(expected):
        raise InputError(
            f"the weights of {name} must have the shapes that its config.json states, and {tensor} is {tuple(stored)} "
            f"instead of {tuple(expected)}: fetch configuration and weights of one revision"
        )


def first_line(error: BaseException | str) -> str:
    """Shorten a message.

    Args:
        error: An exception or its text.

    Returns:
        The first line that is not empty, or the exception's name.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
