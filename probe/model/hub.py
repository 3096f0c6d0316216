"""A quick test of the hub of models and data sets: whether it answers.

Without a network the hub's own client retries for about 25 seconds. So local caches are read first, and the hub is used
only after it has answered one short request.
"""

from __future__ import annotations

import threading

from huggingface_hub import constants, get_session


def reachable(seconds: float = 3.0) -> bool:
    """Ask the hub for one answer.

    Args:
        seconds: The longest wait, 3 by default. It bounds the look-up of the name too, which a client's own timeout
            does not: the request runs in a thread that is not waited for any longer.

    Returns:
        True if any answer came in time; False otherwise, and at once if `HF_HUB_OFFLINE` is set.
    """
    if constants.is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=seconds)
        except Exception:  # noqa: BLE001 - whatever the client raises, the hub cannot be used
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
