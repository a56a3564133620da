"""Functions that run in a process of their own: where memory is measured, or the C library is set differently."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

Calls = Mapping[str, Callable[..., Any]]


class Remote:
    """A fresh process that calls `build` once and then, by name, the functions that it returned.

    It waits idle between calls. `build` is a function of a module, and everything sent can be pickled. Use as a context
    manager.
    """

    def __init__(self, build: Callable[..., Calls], *arguments: Any) -> None:
        # Not forked: the memory of a forked process begins with that of this one.
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, build, arguments))
        self._process.start()
        far.close()
        self._receive()

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join()

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of the function called `name`. Raises: RuntimeError if the process ended instead."""
        self._pipe.send((name, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a process of the benchmark ended with exit code {self._process.exitcode}") from None


def _serve(pipe: Connection, build: Callable[..., Calls], arguments: tuple[Any, ...]) -> None:
    calls = build(*arguments)
    pipe.send(None)
    while True:
        try:
            name, given = pipe.recv()
        except EOFError:
            return
        pipe.send(calls[name](*given))
