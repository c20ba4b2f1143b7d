"""The two ways in which a STAR command ends early on purpose, and one in which it does not."""


class UserError(Exception):
    """An error that the user can fix: one sentence naming the file, the value and the fix (exit code 2)."""


class RunFailed(Exception):
    """The work itself failed, through nothing the person typed (exit code 1)."""


def is_out_of_memory(error: BaseException) -> bool:
    """By name and text, so that nobody has to import torch for it. Its CPU allocator raises a RuntimeError that only
    says so.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
