"""The hub of models and data sets: whether it answers, and the text of a data set.

Left alone, the hub's client retries for about 25 seconds on a machine without a network. So the local caches are read
first, and the hub is asked only once it has answered one short request.
"""

from __future__ import annotations

import threading

from huggingface_hub import constants, get_session


def reachable(seconds: float = 3.0) -> bool:
    """Whether the hub answers one request.

    Args:
        seconds: The longest wait, 3 by default. It bounds the look-up of the name too, which a client's own timeout
            does not: the request runs in a thread that is left behind.

    Returns:
        True if any answer came in time; False otherwise, and at once where `HF_HUB_OFFLINE` is set.
    """
    if constants.is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=seconds)
        except Exception:  # noqa: BLE001 - whatever the client raises means that the hub cannot be used
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
