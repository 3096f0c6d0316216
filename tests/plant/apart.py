"""A call in a process of its own, so that neither a death nor what it leaves behind reaches another one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch


class NoAnswerError(Exception):
    """The process gave no answer: the reason in a few words."""


def answer_of(call: Callable[..., Any], *arguments: Any, limit: float) -> Any:
    """What a call returns, run on one thread in a forked process.

    Args:
        call: Any function; its answer has to pickle.
        *arguments: Its arguments.
        limit: Seconds that it may take.

    Raises:
        NoAnswerError: If it raises, dies or takes longer.
    """
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(call, arguments, send))
    child.start()
    send.close()
    try:
        if not receive.poll(limit):
            raise NoAnswerError(f"no answer in {limit:.0f} seconds")
        found, why = receive.recv()
    except EOFError:
        raise NoAnswerError("its process died") from None
    finally:
        child.kill()
        child.join()
    if why:
        raise NoAnswerError(why)
    return found


def _child(call: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any) -> None:
    torch.set_num_threads(1)
    try:
        pipe.send((call(*arguments), ""))
    except BaseException as error:  # noqa: BLE001 - said to the parent
        pipe.send((None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
