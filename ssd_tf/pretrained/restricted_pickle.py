"""Pickles read without running anything: their instructions are followed here, on plain values only."""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from ssd_tf.errors import DataError, shown

MAX_BYTES = 16 << 20  # a state dict of ten thousand tensors takes two of these MiB
_PROTOCOL = 2
_MAX_STEPS = 1_000_000  # of forty for a tensor
# What torch asks for where a tensor is more than plain numbers.
_SPECIAL = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.(storage\.)?\w+Storage|torch\.serialization\._get_layout"
)
_MAX_INTEGER = 16  # bytes
_MAX_NAME = 1000  # characters of a module or a name in it


@dataclass(frozen=True, eq=False)
class Global:
    """What a pickle asks for by name.

    Attributes:
      name: "module.name".
      call: function of ours that stands for it; None where it may be named but not called.
      known: whether it may be in the pickle at all.
    """

    name: str
    call: Callable | None = None
    known: bool = True


@dataclass(frozen=True, eq=False)
class Opaque:
    """A value of no use here, such as a set or a device."""


class WholeModel(DataError):
    """A pickle that holds an object of some class in place of tensors."""


def load(data, start, find, load_persistent):
    """Follows a pickle's instructions; only functions that `find` gives are ever called.

    Args:
      data: bytes that hold the pickle.
      start: where in them it begins.
      find: function "module.name" -> Global.
      load_persistent: function from a persistent id to its value.

    Returns:
      (value, where the pickle ends); dicts of all kinds are dict.

    Raises:
      DataError: damaged, too large, or it asks for what `find` does not know; does not name the file.
    """
    machine = _Machine(data, start, find, load_persistent)
    try:
        return machine.run(), machine.at
    except WholeModel:
        raise
    except DataError as error:
        raise (refusal(machine.foreign) if machine.foreign else error) from None
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        senseless = DataError(
            f"damaged: its pickle makes no sense at byte {machine.instruction:,} ({type(error).__name__})"
        )
        raise (refusal(machine.foreign) if machine.foreign else senseless) from None


class _Machine:
    """State of one pickle: a stack of values, the stacks below open marks, and the numbered values."""

    def __init__(self, data, start, find, load_persistent):
        self.data, self.at, self.instruction = data, start, start
        self.find, self.load_persistent = find, load_persistent
        self.stack, self.below, self.memo = [], [], {}
        self.steps, self.foreign, self.protocol = 0, None, 0

    def run(self):
        while True:
            self.instruction = self.at
            code = self.take(1)
            if code == b".":
                break
            if code not in _INSTRUCTIONS:
                raise DataError(f"damaged: its pickle has the instruction {code!r} at byte {self.instruction:,}")
            self.spend(1)
            _INSTRUCTIONS[code](self)
        if self.foreign:
            raise refusal(self.foreign)
        if self.protocol != _PROTOCOL:  # torch's own reader takes no other either
            raise DataError(
                f"its pickle is of protocol {self.protocol}; save it with torch.save's own, {_PROTOCOL}"
            )
        return self.stack.pop()

    def spend(self, steps):
        self.steps += steps
        if self.steps > _MAX_STEPS:
            raise DataError(f"refused: its pickle takes more than {_MAX_STEPS:,} steps")

    def take(self, count):
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise DataError(f"cut off, or damaged: its pickle goes on behind byte {len(self.data):,}")
        self.at += count
        return taken

    def number(self, layout):
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self):
        end = self.data.find(b"\n", self.at, self.at + _MAX_NAME)
        if end < 0:
            raise DataError(f"cut off, or damaged: its pickle has no name at byte {self.at:,}")
        return self.take(end + 1 - self.at)[:-1].decode("utf-8")

    def push(self, value):
        self.stack.append(value)

    def pop_mark(self):
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, kind):
        """The last value, which must be of exactly this type."""
        if type(self.stack[-1]) is not kind:
            raise TypeError
        return self.stack[-1]


def refusal(name):
    """Returns the DataError for a pickle that asks for the function or class `name`."""
    if name.startswith(("torch.nn.modules.", "torch.jit.")):
        return whole_model(name)
    if _SPECIAL.fullmatch(name):
        return DataError(
            f"refused: holds tensors that are sparse, quantised, complex or of a rare kind ({_short(name)})"
        )
    return DataError(f"refused: would run code: it asks for {_short(name)}")


def whole_model(name):
    """Returns the DataError for a pickle that holds an object of the class `name`."""
    return WholeModel(
        f"refused: would run code: holds an object of {_short(name)}, not a state dict; of a whole model, "
        "save model.state_dict()"
    )


def _short(name):
    return shown(name[:80]) + ("..." if len(name) > 80 else "")


# --- instructions ---------------------------------------------------------------------------------


def _begin(machine):
    machine.protocol = machine.number("<B")


def _push_global(machine, module, name):
    found = machine.find(f"{module}.{name}")
    if not found.known:
        machine.foreign = machine.foreign or found.name
    machine.push(found)


def _stack_global(machine):
    module, name = machine.stack[-2:]
    del machine.stack[-2:]
    if type(module) is not str or type(name) is not str:
        raise TypeError
    if max(len(module), len(name)) > _MAX_NAME:  # before they are joined: both may come again and again
        raise refusal(f"{module[:_MAX_NAME]}.{name[:_MAX_NAME]}")
    _push_global(machine, module, name)


def _reduce(machine):
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if type(arguments) is not tuple or type(function) is not Global:
        raise TypeError
    if function.call is None:
        raise refusal(function.name)
    machine.spend(sum(len(item) for item in arguments if isinstance(item, (tuple, list, dict))))
    machine.push(function.call(*arguments))


def _new_object(machine, count):
    """NEWOBJ and NEWOBJ_EX: with a class and `count` further values."""
    made = machine.stack[-1 - count]
    raise whole_model(made.name if type(made) is Global else "an unknown class")


def _object(machine):
    made = machine.pop_mark()[0]
    raise refusal(made.name if type(made) is Global else "an unknown class")


def _instance(machine):
    raise refusal(f"{machine.line()}.{machine.line()}")


def _extension(machine):
    raise refusal("a number of the copyreg registry")


def _build(machine):
    """Attributes of an OrderedDict, such as the versions of a state dict's modules, are of no use here."""
    machine.stack.pop()
    machine.top(dict)


def _persistent(machine):
    machine.push(machine.load_persistent(machine.stack.pop()))


def _set_items(machine, items):
    target = machine.stack[-1]
    if type(target) is Opaque:  # a Counter
        return
    machine.top(dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[check_key(key)] = value


def check_key(key):
    """Returns a dict's key if it is text or a whole number.

    Raises:
      DataError: it is neither: such keys can be made to take for ever.
    """
    if type(key) not in (str, int, bool) or (type(key) is int and key.bit_length() > 64):
        raise DataError(
            f"refused: a dict has a key that is neither text nor a whole number ({type(key).__name__})"
        )
    return key


def _set_item(machine):
    items = machine.stack[-2:]
    del machine.stack[-2:]
    _set_items(machine, items)


def _append(machine):
    value = machine.stack.pop()
    machine.top(list).append(value)


def _append_items(machine):
    items = machine.pop_mark()
    machine.top(list).extend(items)


def _tuple(machine, count):
    items = tuple(machine.stack[-count:])
    if len(items) < count:
        raise IndexError
    machine.stack[-count:] = [items]


def _integer(machine):
    count = machine.number("<B")
    if count > _MAX_INTEGER:
        raise DataError("refused: its pickle holds a giant number")
    machine.push(int.from_bytes(machine.take(count), "little", signed=True))


def _mark(machine):
    machine.below.append(machine.stack)
    machine.stack = []


def _keep(machine, number):
    machine.memo[number] = machine.stack[-1]


def _text(layout):
    return lambda machine: machine.push(machine.take(machine.number(layout)).decode("utf-8"))


def _constant(make):
    return lambda machine: machine.push(make())


# What protocol 2 is made of, and of later ones what tells which functions they ask for.
_INSTRUCTIONS = {
    b"\x80": _begin,
    b"\x95": lambda machine: machine.take(8),  # frame
    b"N": _constant(lambda: None),
    b"\x88": _constant(lambda: True),
    b"\x89": _constant(lambda: False),
    b")": _constant(tuple),
    b"]": _constant(list),
    b"}": _constant(dict),
    b"\x8f": _constant(Opaque),  # set
    b"J": lambda machine: machine.push(machine.number("<i")),
    b"K": lambda machine: machine.push(machine.number("<B")),
    b"M": lambda machine: machine.push(machine.number("<H")),
    b"\x8a": _integer,
    b"G": lambda machine: machine.push(machine.number(">d")),
    b"X": _text("<I"),
    b"\x8c": _text("<B"),
    b"U": _text("<B"),  # Python 2 had no other text
    b"q": lambda machine: _keep(machine, machine.number("<B")),
    b"r": lambda machine: _keep(machine, machine.number("<I")),
    b"\x94": lambda machine: _keep(machine, len(machine.memo)),
    b"h": lambda machine: machine.push(machine.memo[machine.number("<B")]),
    b"j": lambda machine: machine.push(machine.memo[machine.number("<I")]),
    b"(": _mark,
    b"t": lambda machine: machine.push(tuple(machine.pop_mark())),
    b"\x85": lambda machine: _tuple(machine, 1),
    b"\x86": lambda machine: _tuple(machine, 2),
    b"\x87": lambda machine: _tuple(machine, 3),
    b"a": _append,
    b"e": _append_items,
    b"s": _set_item,
    b"u": lambda machine: _set_items(machine, machine.pop_mark()),
    b"c": lambda machine: _push_global(machine, machine.line(), machine.line()),
    b"\x93": _stack_global,
    b"R": _reduce,
    b"b": _build,
    b"Q": _persistent,
    b"\x81": lambda machine: _new_object(machine, 1),
    b"\x92": lambda machine: _new_object(machine, 2),
    b"o": _object,
    b"i": _instance,
    b"\x82": _extension,
    b"\x83": _extension,
    b"\x84": _extension,
}
