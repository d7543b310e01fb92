"""A progress bar on standard error while a folder's cases are read."""

from __future__ import annotations


class ProgressBar:
    """A bar on standard error, disabled when that is not a terminal."""

    def __enter__(self) -> ProgressBar:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._bar.start()
        self._task = self._bar.add_task("reading", total=None)
        return self

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` cases are read."""
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
