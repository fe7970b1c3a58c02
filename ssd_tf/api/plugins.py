"""A user's own file of backbones: imported because the command line says so; no recipe or run can ask for it."""

import importlib.machinery
import importlib.util
import traceback
from pathlib import Path

from ssd_tf.errors import ConfigError, SsdError, shown
from ssd_tf.models import registry


def load(path):
    """Runs a Python file that registers backbones.

    Args:
      path: the file; it calls ssd_tf.register_backbone.

    Raises:
      ConfigError: no such file, an error in it (with its line), or it registers nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"--plugin: no such file: {shown(path)}")
    before = registry.list_backbones()
    loader = importlib.machinery.SourceFileLoader(f"ssd_tf_plugin_{path.stem}", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    try:
        loader.exec_module(module)
    except SsdError as error:
        raise ConfigError(f"--plugin: {shown(path)}: {error}") from error
    except (Exception, SystemExit) as error:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        reason = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
        raise ConfigError(f"--plugin: {shown(path)}, line {_line(error, path)}: {reason}") from error
    if registry.list_backbones() == before:
        raise ConfigError(f"--plugin: {shown(path)} registers no backbone (ssd_tf.register_backbone does)")


def _line(error, path):
    """The last line of the file itself that led to the error."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), 1)
