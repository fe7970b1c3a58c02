"""Runs a command: flags, help, errors as one line, exit codes, JSON as the last line.

absl's own `app.run` exits 1 for help and for mistyped flags and shares one set of flags in the process; here
every command has its own, and nothing heavy is imported before flags and config are known to be good.
"""

import contextlib
import importlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources

from absl import flags

from ssd_tf.errors import ConfigError, Interrupted, SsdError, suggest


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      name: as typed in a shell.
      summary: what it does; the first lines of its help.
      define: function (FlagValues) that defines its flags.
      prepare: function (FlagValues) -> keyword arguments of the call; checks the flags; imports nothing heavy.
      call: "module:function" of the api.
      show: function (result dict) -> text for people.
      queries: {flag: ("module:function", show)}: questions that a flag asks instead of running the command.
    """

    name: str
    summary: str
    define: Callable
    prepare: Callable
    call: str
    show: Callable
    queries: dict = field(default_factory=dict)


def run(command, argv=None):
    """Runs a command and returns its exit code; `argv` is without the program's name."""
    values = flags.FlagValues()
    command.define(values)
    flags.DEFINE_bool("json", False, "Print the result as a JSON object on the last line.", flag_values=values)
    flags.DEFINE_bool("version", False, "Print the version and leave.", flag_values=values)
    flags.DEFINE_bool("help", False, "Print this help and leave.", short_name="h", flag_values=values)
    try:
        with _sigterm_as_error():
            return _run(command, values, sys.argv[1:] if argv is None else argv)
    except SsdError as error:
        print(error, *error.details, sep="\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(command, values, argv):
    _parse(values, command.name, argv)
    if values.help:
        print(_help(command, values))
        return 0
    if values.version:
        print(resources.files("ssd_tf").joinpath("VERSION").read_text().strip())
        return 0
    query = next((name for name in command.queries if values[name].value), None)
    arguments = {} if query else command.prepare(values)
    for file in values.plugin if "plugin" in values else ():
        _load("ssd_tf.api.plugins:load")(file)
    call, show = command.queries[query] if query else (command.call, command.show)
    result = _load(call)(**arguments)
    print(show(result))
    if values.json:
        print(json.dumps(result, allow_nan=False))
    return 0


def _parse(values, name, argv):
    try:
        rest = values([name, *argv])[1:]
    except flags.Error as error:
        raise ConfigError(f"{str(error).splitlines()[0]} ({name} --help lists the flags)") from None
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}: values are given as --flag=value ({name} --help)")


def _help(command, values):
    lines = [command.summary, "", "Flags:"]
    for name in sorted(values):
        flag = values[name]
        if name != flag.name:  # a short name
            continue
        default = "" if flag.default in (None, False, "", []) else f" (default: {flag.default_as_str})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)


def _load(call):
    """Imports the api function; what TensorFlow prints at its start is shown only if the import fails."""
    module, function = call.split(":")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with _held_stderr():
        return getattr(importlib.import_module(module), function)


@contextlib.contextmanager
def _held_stderr():
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except (KeyboardInterrupt, SsdError):  # says itself what there is to say
            raise
        except BaseException:
            os.dup2(kept, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _sigterm_as_error():
    def stop(number, _):
        raise Interrupted("stopped", number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # called from another thread: signals are its owner's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def define_overrides(values, text):
    """Defines --set; `text` says which keys it takes."""
    flags.DEFINE_multi_string(
        "set", [], f"section.key=value: changes a key of {text}; repeatable.", flag_values=values
    )


def define_plugin(values):
    """Defines --plugin, the one way by which a command runs a user's own code."""
    text = "Python file of your own that registers backbones; repeatable."
    flags.DEFINE_multi_string("plugin", [], text, flag_values=values)


def required(values, *names):
    """Raises ConfigError unless every named flag was given."""
    for name in names:
        if not values[name].value:
            raise ConfigError(f"--{name} is required")


def check_choice(values, name, choices):
    """Raises ConfigError unless the flag's value is one of `choices`; names the nearest."""
    value = values[name].value
    if value not in choices:
        raise ConfigError(f"--{name}: {value!r} is none of {', '.join(choices)}{suggest(value, choices)}")


def check_checkpoint(values):
    """Raises ConfigError unless --checkpoint is latest, best or step-N."""
    if not re.fullmatch(r"latest|best|step-\d+", values.checkpoint):
        raise ConfigError(f"--checkpoint: expected latest, best or step-N, got {values.checkpoint!r}")


_SETTLED = 0.5  # seconds before a rate means something


def progress_printer(what, stream=None):
    """Returns a function (done, total) that prints "what n/N, rate, time left" now and then.

    On a terminal the line is rewritten; in a log a new one appears at every tenth.
    """
    stream = stream or sys.stderr
    begun, last = [], [0.0, -1]

    def show(done, total):
        now, tenth = time.monotonic(), done * 10 // max(total, 1)
        if not begun:  # the first call marks the start: how long what came before took is unknown
            begun.extend((now, done))
            return
        if done < total and now - begun[0] < _SETTLED:
            return
        terminal = stream.isatty()
        if done < total and (now - last[0] < 0.2 if terminal else tenth == last[1]):
            return
        last[:] = now, tenth
        rate = (done - begun[1]) / max(now - begun[0], 1e-9)
        line = f"{what} {done:,}/{total:,}, {rate:,.0f}/s, {(total - done) / max(rate, 1e-9):.0f} s left"
        print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal and done < total else "\n", file=stream)

    return show
