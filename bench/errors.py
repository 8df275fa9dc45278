"""What a user did wrong, said in one line; the command line prints it and exits with 2."""


class UsageError(ValueError):
    """Bad input: the message names the value and what would be accepted."""
