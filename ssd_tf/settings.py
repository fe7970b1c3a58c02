"""One setting of a Config: its type, what it may be, how it is read from text and checked.

A wrong type or a value out of range is a ConfigError that names the key.
"""

import contextlib
import math
import reprlib
import tomllib
import types
import typing
from dataclasses import field

from ssd_tf.errors import ConfigError, suggest

SHOWN_LENGTH = 80  # characters of a key or value from a file that a message repeats
_MAX_BITS = 63


def setting(default, choices=None, low=None, high=None, resumable=False, columns=None):
    """Declares a setting as a dataclass field.

    Args:
      default: its value where nothing is said.
      choices: the texts that it, or each of its entries, may be; or None.
      low, high: range of its numbers, or None.
      resumable: whether a run may go on after it changed.
      columns: for tables, {name: (lowest, highest)} of the numbers in each row.

    Returns:
      dataclasses.field.
    """
    metadata = {"choices": choices, "low": low, "high": high, "resumable": resumable, "columns": columns}
    return field(default=default, metadata=metadata)


def parse(key, kind, raw):
    """Reads the text of an override.

    Args:
      key: the setting's name, for errors.
      kind: its type.
      raw: the text.

    Returns:
      the value, to be checked; a ConfigError if the text is no value at all.
    """
    if kind is str:
        return raw
    if kind is bool:
        if raw.lower() not in ("true", "false"):
            raise ConfigError(f"{key}: expected true or false, got {raw!r}")
        return raw.lower() == "true"
    if kind is float:  # TOML would refuse ".5"
        with contextlib.suppress(ValueError):
            return float(raw)
    if kind == tuple[str, ...] and not raw.startswith("["):
        return [name.strip() for name in raw.split(",") if name.strip()]
    if isinstance(kind, types.GenericAlias) and not raw.startswith("[") and raw.count(","):
        raw = f"[{raw}]"
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        parsed = {}
    if list(parsed) != ["value"]:  # a text with a line break could hold more than one
        raise ConfigError(f"{key}: expected {_kind_name(kind)}, got {raw!r}")
    return parsed["value"]


def _kind_name(kind):
    if isinstance(kind, types.GenericAlias):
        inner = _kind_name(typing.get_args(kind)[0])
        return f"a list of {inner.replace('a list', 'lists') if inner.startswith('a ') else inner + 's'}"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[kind]


def check(key, item, value):
    """Returns `value` as the type of the dataclass field `item`; a ConfigError naming the key if it cannot be."""
    value = _typed(key, item.type, value)
    choices, low, high = (item.metadata.get(name) for name in ("choices", "low", "high"))
    for entry in (value if isinstance(value, tuple) else (value,)) if choices else ():
        if entry not in choices:
            near = suggest(entry, choices)
            raise ConfigError(f"{key}: {_shown_value(entry)} is none of {', '.join(choices)}{near}")
    for number in _flat(value):
        if (low is not None and number < low) or (high is not None and number > high):
            raise ConfigError(f"{key}: {number} is outside {_range_text(low, high)}")
    if item.metadata.get("columns"):
        _check_rows(key, item.metadata["columns"], value)
    return value


def _check_rows(key, columns, rows):
    for number, row in enumerate(rows, 1):
        if len(row) != len(columns):
            names = ", ".join(columns)
            raise ConfigError(f"{key}: entry {number}: expected [{names}], got {list(row)}")
        for (name, (low, high)), entry in zip(columns.items(), row, strict=True):
            if not low <= entry <= high:
                raise ConfigError(f"{key}: entry {number}: {name} {entry} is outside {_range_text(low, high)}")


def _flat(value):
    """All numbers of a value, nested tuples opened."""
    return [number for entry in value for number in _flat(entry)] if isinstance(value, tuple) else [value]


def _shown_value(value):
    """A value from a file as text, cut where it is long."""
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = SHOWN_LENGTH
    shortened.maxlist = 10
    try:
        return shortened.repr(value)
    except ValueError:  # an integer of thousands of digits inside
        return f"a {type(value).__name__} of huge numbers"


def _range_text(low, high):
    return f"{'' if low is None else low}..{'' if high is None else high}"


def _typed(key, kind, value):
    if isinstance(kind, types.GenericAlias):
        return _typed_tuple(key, kind, value)
    if type(value) is int and value.bit_length() > _MAX_BITS:
        raise ConfigError(f"{key}: expected {_kind_name(kind)}, got one of {value.bit_length()} bits")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ConfigError(f"{key}: expected {_kind_name(kind)}, got {_shown_value(value)}")
    return value


def _typed_tuple(key, kind, value):
    arguments = typing.get_args(kind)
    if arguments[0] is str and isinstance(value, (list, tuple)):  # names, or numbers that count layers
        value = [str(entry) if type(entry) is int else entry for entry in value]
    fixed = arguments[-1] is not Ellipsis
    if fixed and type(value) is int:  # one number for both sides of an image
        value = [value] * len(arguments)
    if not isinstance(value, (list, tuple)) or (fixed and len(value) != len(arguments)):
        raise ConfigError(f"{key}: expected {_kind_name(kind)}, got {_shown_value(value)}")
    return tuple(_typed(key, arguments[0], entry) for entry in value)
