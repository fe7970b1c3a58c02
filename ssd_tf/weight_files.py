"""Weight files, judged before anything is read from them: a stranger's may be no weights at all."""

import contextlib
import itertools
import math
import os
import re
import zipfile
from collections import Counter

import h5py
import numpy as np

from ssd_tf.errors import DataError, shown

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_OBJECTS = 100_000
_MAX_NESTING = 4096  # characters of the groups around an entry
_MAX_EXPANSION = 8  # weights hardly compress; a file that unpacks to more than this is made to fill the memory
_NUM_SHOWN = 3  # differences that a message names
_SMALL = 16 << 20
_SLACK = 64 << 10  # names and counters that a file may hold beside the weights
_MAX_HEADER = 4096  # of an array in an .npz file


def check_weights_file(path, limit=None):
    """Refuses a file that is no HDF5, reaches outside itself, or claims more than it can hold.

    Args:
      path: the file.
      limit: bytes of the model's weights, or None: what the file's own size makes credible.

    Raises:
      DataError: why it is refused; names the file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_SIGNATURE))
    except OSError as error:
        raise DataError(f"cannot read: {os.strerror(error.errno).lower()}: {shown(path)}") from None
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":  # .keras, pickles and what torch makes of them
        raise DataError(f"refused: would run code; use keras.saving with safe_mode yourself: {shown(path)}")
    if start != _SIGNATURE:
        raise DataError(f"not an HDF5 weights file (starts with {start.hex(' ')}): {shown(path)}")
    with _opened(path) as file:
        declared = sum(
            _dataset_bytes(entry, name) for name, entry in _walk(file) if isinstance(entry, h5py.Dataset)
        )
        credible = max(_SMALL, _MAX_EXPANSION * file.id.get_filesize())
    if limit is not None and declared > limit + _SLACK:
        raise DataError(
            f"weights do not fit: {_mebibytes(declared)}, the model has {_mebibytes(limit)}: {shown(path)}"
        )
    if declared > credible:
        raise DataError(f"refused: claims to hold {_mebibytes(declared)}: {shown(path)}")


def _mebibytes(count):
    return f"{count / 2**20:,.1f} MiB"


@contextlib.contextmanager
def _opened(path):
    """The open HDF5 file; whatever goes wrong while it is open becomes a DataError that names it."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError as error:
        raise DataError(f"{error}: {shown(path)}") from None
    except Exception as error:  # a broken file makes the HDF5 library raise whatever it stumbles over
        raise DataError(f"cannot read HDF5: {_first_line(error)}: {shown(path)}") from None


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _walk(file):
    """(path, entry) of all that is in the file, each entry once; nothing is read, no link is followed."""
    waiting, seen = [("", file)], set()
    while waiting:
        prefix, group = waiting.pop()
        if len(prefix) > _MAX_NESTING:
            raise DataError("refused: groups in groups without end")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise DataError(f"refused: {shown(name)[:80]} is a link")
            entry = group[name]
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _MAX_OBJECTS:
                raise DataError(f"refused: more than {_MAX_OBJECTS:,} objects")
            yield prefix + name, entry
            if isinstance(entry, h5py.Group):
                waiting.append((f"{prefix}{name}/", entry))


def _dataset_bytes(dataset, path):
    """Bytes of an array as its header states them."""
    name = shown(path.rpartition("/")[2])[:80]
    if dataset.external or dataset.is_virtual:
        raise DataError(f"refused: {name} lies in another file")
    if dataset.dtype.hasobject:
        raise DataError(f"refused: {name} holds objects, not numbers")
    return math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize


def list_tensors(path):
    """Lists the layers' tensors of a Keras weights file in either format; an optimizer's state is left out.

    Args:
      path: a file that check_weights_file lets pass.

    Returns:
      {name in the file: shape} in natural order (2 before 10), or in the order that the file states.

    Raises:
      DataError: it cannot be read; names the file.
    """
    with _opened(path) as file:
        layers = _stored_layers(file)
        tensors = _stored_tensors(file) if layers is None else _flatten(layers.values())
        return {name: dataset.shape for name, dataset in tensors.items() if dataset is not None}


def find_differences(path, model):
    """Compares a Keras weights file with a network, matching them as Keras does; no data is read.

    Args:
      path: a file that check_weights_file lets pass.
      model: keras.Model of layers without inner layers, and of models of such.

    Returns:
      list of texts, one for each tensor that is missing, has another shape or is none of the network's, in the
      network's order; empty where the file fits.

    Raises:
      DataError: the file cannot be read; names it.
    """
    with _opened(path) as file:
        return _describe(*_match(file, model))


def read_weights(path, model):
    """Reads a file about which find_differences has nothing to say, whatever its name ends in.

    Args:
      path: the file.
      model: keras.Model.

    Yields:
      (weight of the model, array to assign to it), one at a time.

    Raises:
      DataError: the file does not fit or cannot be read; names it.
    """
    with _opened(path) as file:
        pairs, beyond = _match(file, model)
        if differences := _describe(pairs, beyond):
            raise DataError(f"weights do not fit: {differences[0]}")
        for _, weight, dataset in pairs:
            yield weight, _read_numbers(dataset)


def _read_numbers(dataset):
    if dataset.dtype.kind not in "fiub":
        raise DataError(f"{shown(dataset.name)[-80:]} holds no numbers")
    array = dataset[()]
    if not np.all(np.isfinite(array)):
        raise DataError(f"{shown(dataset.name)[-80:]} is not finite")
    return array


def _describe(pairs, beyond):
    """What find_differences returns, from what _match does."""
    texts = []
    for layer, weight, dataset in pairs:
        name, expected = f"{layer.name}/{weight.name}", tuple(weight.shape)
        if dataset is None:
            texts.append(f"{name} is missing")
        elif dataset.shape != expected:
            texts.append(f"{name} is {dimensions(dataset.shape)} in the file, expected {dimensions(expected)}")
    return texts + [f"{shown(name)[:80]} is not part of the network" for name in beyond]


def summarize(differences):
    """Returns the first texts of a list in one line, and how many more there are."""
    beyond = len(differences) - _NUM_SHOWN
    return "; ".join(differences[:_NUM_SHOWN]) + (f"; and {beyond} more" if beyond > 0 else "")


def dimensions(shape):
    """Returns a shape as text, such as 3x3x64x128."""
    return "x".join(str(size) for size in shape or ()) or "one number"


def _match(file, model):
    """Pairs the weights of a network with the tensors of a file.

    Returns:
      list of (layer, weight, dataset or None), and the names of the tensors that remain.
    """
    stored = _stored_layers(file)
    if stored is None:
        return _match_paths(_stored_tensors(file), model)
    layers = [layer for layer in model.layers if layer.weights]
    matches = [_match_layers(itertools.zip_longest(layers, stored.values()))]
    if len(layers) != len(stored):
        # Keras, which goes by position alone, gives up here: the names may tell better what is missing.
        matches.append(_match_layers(_pair_by_name(layers, stored)))
    return min(matches, key=lambda match: len(_describe(*match)))


def _match_paths(tensors, model):
    """_match for the format that names a tensor after its layer's class and its place."""
    pairs = [
        (layer, weight, tensors.pop(f"{path}/vars/{index}", None))
        for path, layer in _leaves(model.layers, "layers")
        for index, weight in enumerate(layer.weights)
    ]
    return pairs, list(tensors)


def _match_layers(layers):
    """_match for pairs of (layer, {name: dataset}); None on the side that has no partner."""
    pairs, beyond = [], []
    for layer, tensors in layers:
        weights = [] if layer is None else [*layer.trainable_weights, *layer.non_trainable_weights]
        tensors = tensors or {}
        datasets = [*tensors.values(), *[None] * len(weights)]
        pairs += [(layer, weight, dataset) for weight, dataset in zip(weights, datasets)]
        beyond += list(tensors)[len(weights) :]
    return pairs, beyond


def _pair_by_name(layers, stored):
    named = {layer.name for layer in layers}
    pairs = [(layer, stored.get(layer.name)) for layer in layers]
    return pairs + [(None, tensors) for name, tensors in stored.items() if name not in named]


def _leaves(layers, prefix):
    """(path in a file, layer) of all layers, also of those in inner models."""
    counts = Counter()
    for layer in layers:
        kind = _snake_case(type(layer).__name__)
        path = f"{prefix}/{kind}_{counts[kind]}" if counts[kind] else f"{prefix}/{kind}"
        counts[kind] += 1
        if hasattr(layer, "layers"):
            yield from _leaves(layer.layers, f"{path}/layers")
        else:
            yield path, layer


def _snake_case(name):
    """Conv2D becomes conv2d and ReLU re_lu: a word begins at a capital after or before a small letter."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", name).lower()


def _stored_tensors(file):
    """{path: dataset} of a .weights.h5 file's layers in natural order."""
    # Keras 3.0 had another name for "layers"; a dropout's random state is no weight.
    entries = {re.sub("^_layer_checkpoint_dependencies/", "layers/", path): entry for path, entry in _walk(file)}
    paths = [
        path
        for path, entry in entries.items()
        if isinstance(entry, h5py.Dataset) and path.startswith("layers/") and "/seed_generator/" not in path
    ]
    return {path: entries[path] for path in sorted(paths, key=_natural_key)}


def _natural_key(path):
    return re.sub("[0-9]+", lambda number: number[0].zfill(9), path)


def _stored_layers(file):
    """{layer name: {tensor name: dataset or None}} of the older format; None if the file is not of it."""
    entries = dict(_walk(file))
    whole_model = "layer_names" not in file.attrs and isinstance(entries.get("model_weights"), h5py.Group)
    group, prefix = (entries["model_weights"], "model_weights/") if whole_model else (file, "")
    if "layer_names" not in group.attrs and "layer_names0" not in group.attrs:
        return None
    layers = {}
    for layer in dict.fromkeys(_read_names(group, "layer_names")):
        inner = entries.get(prefix + layer)
        if isinstance(inner, h5py.Group) and (names := _read_names(inner, "weight_names")):
            layers[layer] = {_full_name(layer, name): entries.get(f"{prefix}{layer}/{name}") for name in names}
    return layers


def _read_names(group, attribute):
    """The texts of an attribute, which Keras spreads over several where they are many."""
    numbered = itertools.takewhile(group.attrs.__contains__, (f"{attribute}{i}" for i in itertools.count()))
    parts = [attribute] if attribute in group.attrs else numbered
    names = [name for part in parts for name in np.ravel(group.attrs[part])]
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]


def _full_name(layer, weight):
    return weight if weight.startswith(f"{layer}/") else f"{layer}/{weight}"


def _flatten(groups):
    return {name: tensor for group in groups for name, tensor in group.items()}


def read_arrays(path, shapes):
    """Reads an .npz file of arrays whose shapes are known, and nothing else.

    Args:
      path: the file.
      shapes: the shape of each array, in the order of their names.

    Returns:
      list of arrays.

    Raises:
      DataError: other arrays, other shapes, compressed or damaged; names the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.filename)
            if len(members) != len(shapes):
                raise DataError(f"{len(members)} arrays, expected {len(shapes)}")
            return [_read_array(archive, member, shape) for member, shape in zip(members, shapes)]
    except DataError as error:
        raise DataError(f"{error}: {shown(path)}") from None
    except Exception as error:  # zipfile and NumPy raise a dozen kinds over broken files
        raise DataError(f"cannot read arrays: {_first_line(error)}: {shown(path)}") from None


def _read_array(archive, member, shape):
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise DataError(f"{shown(member.filename)[:80]} is compressed")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        if read_header is None:
            raise DataError(f"{shown(member.filename)[:80]} has a header of version {version}")
        found, _, dtype = read_header(file, max_header_size=_MAX_HEADER)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise DataError(f"{shown(member.filename)[:80]} holds objects, not numbers")
    if found != tuple(shape):
        raise DataError(f"{shown(member.filename)[:80]} is {list(found)}, expected {list(shape)}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False, max_header_size=_MAX_HEADER)
