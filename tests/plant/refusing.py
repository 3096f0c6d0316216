"""A call that is refused as all input is: by an `InputError` of one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from probe.errors import InputError


def refused(call: Callable[[], object], *words: str) -> str:
    """The message, which holds each of the words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message
