"""The log of an activity that fails for a while: a line when it begins to fail, for each new cause, and at the end."""

from __future__ import annotations

import logging

from jobs.faults import describe, fault_of, is_outage


class FaultLog:
    """A log that stays short while a loop fails again and again for one cause.

    As a context manager it logs a fault of the database in place of raising it; the caller tries again later.

    Args:
        log: where the lines go.
        activity: a noun phrase for the first words of each line, such as "the poll of the reconciler".
    """

    def __init__(self, log: logging.Logger, activity: str) -> None:
        self._log, self._activity = log, activity
        self._cause: tuple[object, ...] | None = None

    @property
    def is_failing(self) -> bool:
        """Whether the last try failed."""
        return self._cause is not None

    def failed(self, error: BaseException, reason: str | None = None) -> None:
        """Log a failure, unless the last one had the same cause; only an unexpected error gets a traceback.

        Args:
            error: its type and place tell causes apart.
            reason: for an error that is expected here.
        """
        cause = (type(error), *_place(error))
        if cause == self._cause:
            return
        self._cause = cause
        if reason is not None:
            pass
        elif is_outage(error):
            reason = describe(error)
        elif isinstance(error, OSError):
            reason = _first_line(error)
        else:
            self._log.error("%s fails and is repeated", self._activity, exc_info=error)
            return
        self._log.warning("%s fails and is repeated: %s", self._activity, reason)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            self.succeeded()
        elif is_outage(error):
            self.failed(error)
            return True
        return False

    def succeeded(self) -> None:
        """Log that the activity works again, if its last try failed."""
        if self._cause is not None:
            self._cause = None
            self._log.info("%s works again", self._activity)


def _place(error: BaseException) -> tuple[object, ...]:
    """Return where an unexpected error was raised; messages of the others vary with ports and times."""
    if (fault := fault_of(error)) is not None:
        return (fault,) if fault.is_passing else (fault, describe(error))
    if isinstance(error, OSError):
        return (error.errno,)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return () if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
