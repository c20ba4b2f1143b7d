"""The two ways in which a STAR command ends early on purpose."""


class UserError(Exception):
    """Something a person can put right: one sentence naming the file, the value and the fix (exit code 2)."""


class RunFailed(Exception):
    """The work itself failed, through nothing the person typed (exit code 1)."""
