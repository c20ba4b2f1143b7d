"""Errors with a message for the user, and how to recognise running out of memory."""


class UserError(Exception):
    """An error that the user can fix: one sentence naming the file, the value and the fix (exit code 2)."""


class RunFailed(Exception):
    """The work failed, through no fault of the command line (exit code 1)."""


class Damaged(UserWarning):
    """A file has lost a part, and the rest of it is used."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out. By name and text, without importing torch, whose CPU allocator raises
    a RuntimeError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
