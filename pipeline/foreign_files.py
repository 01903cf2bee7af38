"""Model files that a user gives to a command, and no build of kdpipe wrote."""

from collections.abc import Iterator
from contextlib import contextmanager

from kdpipe.foundation.errors import ConfigError, VerificationError


@contextmanager
def of_the_user() -> Iterator[None]:
    """What is wrong with a file that is read within is the user's input: ConfigError (exit 2) with the words of the VerificationError (exit 5)."""
    try:
        yield
    except VerificationError as error:
        raise ConfigError.gather(error.problems) from error
