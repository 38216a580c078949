"""What the user reads, and the exit code, when a command cannot do its job.

Exit codes: 0 done and nothing wrong; 1 the run went wrong (failed requests, bad tokens, a crossed limit);
2 a wrong option, or no router there; 78 a configuration, fleet, policy or trace file is wrong, or an address
cannot be listened on (EX_CONFIG of sysexits.h).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import click

from router.errors import ConfigError, PolyphaseError

RUN_FAILED: Final = 1
UNUSABLE: Final = 2
BAD_CONFIG: Final = 78


class Trouble(click.ClickException):
    """A message of cause, consequence and next step, with an exit code."""

    def __init__(self, message: str, exit_code: int = UNUSABLE) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class, reads it here

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to standard error, without a traceback."""
        click.echo(f"polyphase: {self.format_message()}", err=file is None, file=file)


@contextmanager
def told() -> Iterator[None]:
    """Turn failures that a user can act on into Trouble; the rest are bugs and keep their traceback."""
    try:
        yield
    except ConfigError as error:
        raise Trouble(error.message, BAD_CONFIG) from error
    except PolyphaseError as error:
        raise Trouble(error.message) from error
    except OSError as error:
        if (trouble := _of_os_error(error)) is None:
            raise
        raise trouble from error
    except BaseExceptionGroup as group:
        if (cause := _cause(group)) is None:
            raise
        with told():
            raise cause from None


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """What to tell of a task group's failures: the only one, or the first that is in words already."""
    leaves = [leaf for error in group.exceptions for leaf in _leaves(error)]
    if len(leaves) == 1:
        return leaves[0]
    if all(isinstance(leaf, Trouble | PolyphaseError) for leaf in leaves):
        return next((leaf for leaf in leaves if isinstance(leaf, Trouble)), leaves[0])
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _of_os_error(error: OSError) -> Trouble | None:
    if error.errno == errno.EADDRINUSE:
        return Trouble(
            f"{error.strerror or error}. Nothing was started. Stop what listens there, or choose other "
            "addresses.",
            BAD_CONFIG,
        )
    if error.filename is not None:
        return Trouble(f"{error.filename}: {error.strerror}. Nothing was started.")
    return None
