"""The one kind of error that a user can fix: the command lines print it as one line and exit with code 2."""


class UserError(ValueError):
    """A mistake in what the user asked for: its message says the rule, what came, and what to do, in one line."""


class SharedError(UserError):
    """A mistake of which every process of a run knows: one of them is enough to tell it."""
