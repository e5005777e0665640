"""State of a long run on disk: what was interrupted, by whatever means, goes on from at most `every` seconds before.

A run has named phases (images, generator, game, fine-tuning). Each keeps one file, replaced atomically, that holds all
that decides the rest of the phase, the random generators included: a resumed run ends with the very same numbers.
"""
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import torch

from .distributed import is_first
from .whole_file import whole

_ended: ContextVar[list["RunState"] | None] = ContextVar("_ended", default=None)


@contextmanager
def kept_until_written() -> Iterator[None]:
    """Inside, runs that have ended well keep their states: what they made is still to be measured and written.

    The end of the block clears them. Where an error or an interruption ends it, the same work goes on from them.
    """
    ended: list[RunState] = []
    token = _ended.set(ended)
    try:
        yield
    finally:
        _ended.reset(token)
    for run in ended:
        run.clear()


class RunState:
    """The states of one run's phases, under `folder`; None keeps nothing, so that callers need not ask.

    every: seconds between two writings of a phase.
    """

    def __init__(self, folder: Path | None = None, every: float = 30.0):
        self.folder, self.every = Path(folder) if folder else None, every
        self.reused_seconds = 0.0  # spent on what was loaded, by whoever made it: a report's time includes it
        self._written, self._lost = time.monotonic(), False  # lost: the disk takes nothing
        self._started: dict[str, float] = {}  # when each phase would have begun, had it run in one piece

    def load(self, phase: str) -> dict | None:
        """What `save` wrote last for this phase, or None. Raises ValueError for a damaged file, naming it."""
        self._started[phase] = time.monotonic()
        if self.folder is None or not (file := self._file(phase)).exists():
            return None
        try:
            state = torch.load(file, weights_only=True, map_location="cpu")  # it may go on without the GPU that it began on
            seconds = state.pop("seconds")
        except Exception as error:  # whatever a damaged file makes the reader stumble over
            raise ValueError(f"{file} is damaged ({type(error).__name__}): delete it to start this phase anew") from error
        self.reused_seconds += seconds
        self._started[phase] -= seconds
        return state

    def save(self, phase: str, state: Callable[[], dict], *, now: bool = False) -> None:
        """Write `state()`, when `every` seconds have passed since the last writing or at once with `now`.

        Where the disk is full or read-only, one warning says so and nothing more is written: the run itself can go on.
        """
        due = now or time.monotonic() - self._written >= self.every
        if self.folder is None or self._lost or not is_first() or not due:
            return
        content = state() | {"seconds": time.monotonic() - self._started.get(phase, time.monotonic())}
        try:
            with whole(self._file(phase)) as partial:
                torch.save(content, partial)
        except (OSError, RuntimeError) as error:  # torch's writer knows RuntimeError only
            self._lost = True
            warnings.warn(f"{self.folder} cannot keep this run's state ({str(error).splitlines()[0]}); an interruption starts "
                          "it anew", stacklevel=2)
        self._written = time.monotonic()

    def where(self) -> str:
        """Half a sentence for an error message: where the last sound state lies, if one was written."""
        return f"; the last sound state is in {self.folder}" if self.folder and any(self.folder.glob("*.pt")) else ""

    def clear(self) -> None:
        """Remove the files: the run has ended well, and all around it (`kept_until_written`)."""
        if (ended := _ended.get()) is not None:
            ended.append(self)
        elif self.folder is not None and is_first() and self.folder.is_dir():
            with suppress(OSError):  # a disk that has become read-only keeps them
                for file in (*self.folder.glob("*.pt"), *self.folder.glob("*.partial")):
                    file.unlink()
                if not any(self.folder.iterdir()):
                    self.folder.rmdir()

    def _file(self, phase: str) -> Path:
        return self.folder / f"{phase}.pt"
