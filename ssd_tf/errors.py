"""What can go wrong: one line for the user and an exit code for the shell."""

import difflib


class SsdError(Exception):
    """Any fault whose message alone tells the user what to do; the commands print it as one line.

    Args:
      message: that line.
      details: further lines, where one fault has many parts.
    """

    exit_code = 3

    def __init__(self, message, details=()):
        super().__init__(message)
        self.details = tuple(details)


class ConfigError(SsdError):
    """A wrong option, key, recipe, backbone or layer name: found before any work starts."""

    exit_code = 2


class DataError(SsdError):
    """Images, annotations, records, weights or run directories that cannot be used."""

    exit_code = 3


class TrainingError(SsdError):
    """Training stopped because a loss is no longer finite."""

    exit_code = 4


class EnvironmentFault(SsdError):
    """The machine refuses: disk full, output not writable, a missing extra."""

    exit_code = 5


class Interrupted(SsdError):
    """Training was asked to stop and has saved its state.

    Args:
      message: the line for the user.
      signal_number: the signal received; the exit code is 128 + that number, as shells expect.
    """

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def suggest(name, options):
    """Returns " (did you mean x?)" for the nearest of `options`, or "" if none is near."""
    near = difflib.get_close_matches(str(name), [str(option) for option in options], n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def is_text(value):
    """Tells whether a value from a file is a non-empty text that can be stored; JSON can hold half a character."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= char <= "\udfff" for char in value)


def shown(name):
    """Returns a file name as text that is safe to print: control and undecodable bytes escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(name))
