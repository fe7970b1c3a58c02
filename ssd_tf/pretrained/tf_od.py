"""SSDs on MobileNets of the TensorFlow Object Detection API: where their arrays belong in our network.

Their scores are a sigmoid for each class; the column of the background is not read. A graph tells of that, of the
anchors, the image size and the batch norms' epsilon. A checkpoint does not: the API's usual ones are meant.
"""

import contextlib
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssd_tf.boxes import anchors
from ssd_tf.errors import DataError, shown
from ssd_tf.pretrained import frozen_graph, heads, tf_checkpoint, tfjs_file
from ssd_tf.pretrained.catalogue import ENTRIES
from ssd_tf.pretrained.places import Place
from ssd_tf.pretrained.source import DetectorSource

_LEVELS = range(6)
_BODY = "FeatureExtractor"
_BOXES, _CLASSES = "BoxEncodingPredictor", "ClassPredictor"
_AXES = (0, 1, 2, 3)
_BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_WEIGHT = re.compile(rf"({_BODY}|BoxPredictor_\d+)/.*({'|'.join(('weights', 'biases', *_BATCH_NORM))})")
# {their name: (ours, its taps, the last convolution of a fixed number of channels and that number)}
_BACKBONES = {
    "MobilenetV1": ("mobilenet_v1", "conv_pw_11_relu,conv_pw_13_relu", ("Conv2d_13_pointwise", 1024)),
    "MobilenetV2": ("mobilenet_v2", "block_13_expand_relu,out_relu", ("expanded_conv_16/project", 320)),
}
_EXTRA = re.compile(r"(?:Conv2d_13_pointwise|layer_19)_([12])_Conv2d_([2-5])_(1x1|3x3_s2)_\d+(_depthwise)?")
_GRAPH = "frozen_inference_graph.pb"
_INPUT = "image_tensor"  # stands among the shapes for the image that the network gets
_IMAGE_SIZE = (300, 300)
_ANCHORS = ("Postprocessor/ExpandDims", "Concatenate/concat", "MultipleGridAnchorGenerator/Concatenate/concat")
_GENERATOR = "MultipleGridAnchorGenerator/"
_MOST_SHAPES = 100
_EPSILON = 1e-3
_TOLERANCE = 1e-4  # of anchors and of the numbers that they are made from
_RESIZED_TO = re.compile(r"Preprocessor/(?:.*/)?ResizeImage/(?:stack|size|resize/size)")
# The postprocessing's own numbers; the training's are those of our SSDLite recipe.
_SETTINGS = (
    "model.weights=none",
    "model.preprocessing=tf",
    "model.activation=relu6",
    "model.extras_norm=bn",
    "model.levels=6",
    "anchors.preset=tf_od",
    "loss.classification=sigmoid",
    "data.resize=bilinear_tf1",
    "postprocess.clip=after",
    "postprocess.score_threshold=1e-8",
    "postprocess.nms_iou=0.6",
    "postprocess.max_detections=100",
    "train.batch_size=16",
    "train.epochs=28",
    "train.learning_rate=0.02",
    "train.warmup=0.16",
    "train.weight_decay=4e-5",
)


@contextlib.contextmanager
def open_tfjs(path):
    """Opens a detector in TensorFlow.js' format, as tfjs_file.open_tfjs; refuses what our network does not do."""
    yield _checked(tfjs_file.read_graph(path))


@contextlib.contextmanager
def open_tf_od(path):
    """Opens a detector: a frozen graph, a checkpoint, or a folder as the API exports it, whose graph is preferred.

    Args:
      path: the file, the prefix of a checkpoint, or the folder.

    Yields:
      ({name: shape}, function from a name to its array, float32).

    Raises:
      DataError: neither, cut, or a detector that our network is not; the caller names the file.
    """
    path = Path(path)
    path = path / _GRAPH if (path / _GRAPH).is_file() else path
    if path.is_dir() and not tf_checkpoint.is_checkpoint(path):
        raise DataError(f"the folder holds neither {_GRAPH} nor a checkpoint")
    if tf_checkpoint.is_checkpoint(path):
        with tf_checkpoint.open_checkpoint(path) as opened:
            yield opened
    else:
        yield _checked(frozen_graph.read_graph(path))


def _checked(graph):
    """(shapes, read) of a graph that does what our network does; the image's shape joins the shapes."""
    for name, operation in graph.operations.items():
        if name.startswith("Postprocessor/") and operation == "Softmax":
            raise DataError("scores by a softmax over the classes, expected a sigmoid of each (score_converter)")
    for epsilon in graph.epsilons | set(_constant_epsilons(graph)):
        if not abs(epsilon - _EPSILON) <= _EPSILON / 1000:  # not a number is refused too
            raise DataError(f"batch norms of epsilon {epsilon:.3g}, expected {_EPSILON}")
    size = _find_image_size(graph)
    _check_anchors(graph, size)
    image = np.broadcast_to(np.float32(0), (*size, 3))
    return {**graph.shapes, _INPUT: image.shape}, lambda name: image if name == _INPUT else graph.read(name)


def _constant_epsilons(graph):
    """The epsilons of batch norms that a graph has as numbers; what is no single number has another meaning."""
    for name, shape in graph.shapes.items():
        if name.endswith("/batchnorm/add/y") and math.prod(shape) == 1:
            yield graph.read(name).item()


def _find_image_size(graph):
    """(height, width) that the graph resizes images to; the usual one where it does not tell."""
    for name, shape in graph.shapes.items():
        if shape == (2,) and _RESIZED_TO.fullmatch(name):
            size = graph.read(name)
            if not all(32 <= side <= 4096 for side in size):
                raise DataError(f"resizes images to {size[0]:.6g}x{size[1]:.6g}, expected sides of 32 to 4096")
            return tuple(int(side) for side in size)
    return _IMAGE_SIZE


def _check_anchors(graph, image_size):
    """Refuses anchors that are not the API's usual ones: as a whole, or by the numbers that make them."""
    numbers = list(_anchor_numbers())
    for name, shape in graph.shapes.items():
        expected = []
        if name in _ANCHORS and shape[-1:] == (4,):
            expected = [_usual_anchors(image_size)]
        elif name.startswith(_GENERATOR) and len(shape) == 1 and 2 < shape[0] < _MOST_SHAPES:
            expected = numbers
        if expected and not any(_are_close(values, graph, name) for values in expected):
            raise DataError(f"other anchors than ssd_anchor_generator's usual ones: {shown(name)[:80]}")


def _are_close(expected, graph, name):
    if math.prod(graph.shapes[name]) != expected.size:
        return False  # unread: a few bytes can claim to be an array without end
    found = graph.read(name).reshape(expected.shape)
    return np.allclose(found, expected, rtol=0, atol=_TOLERANCE)


def _usual_anchors(image_size):
    """Anchors of the preset where the finest map has one cell in 16 x 16 pixels."""
    spec = anchors.PRESETS["tf_od"]
    steps = [16 << level for level in range(len(spec.sizes))]
    return anchors.make_anchors(
        spec, [tuple(-(-side // step) for side in image_size) for step in steps], image_size
    )


def _anchor_numbers():
    """The aspect ratios and the scales of each level of the preset, as graphs hold them."""
    spec = anchors.PRESETS["tf_od"]
    yield from (np.array([1, 2, 0.5]), np.array([0.5, 1, 1]) * spec.sizes[0])
    for size, next_size, ratios in list(zip(spec.sizes, spec.next_sizes, spec.ratios, strict=True))[1:]:
        both = [side for ratio in ratios for side in (ratio, 1 / ratio)]
        yield np.array([1, *both, 1])
        yield np.array([size] * (len(both) + 1) + [(size * next_size) ** 0.5])


def is_unused(name):
    """Tells whether an array has no place in a detector: other constants of a graph."""
    return _WEIGHT.fullmatch(name) is None


def count_columns(shapes):
    """Returns how many columns the class heads of {name: shape} have, that of background included."""
    return _last(shapes, f"BoxPredictor_0/{_CLASSES}/biases") // _count_anchors(shapes, 0)


def settings(shapes):
    """Returns "section.key=value" texts: the network that {name: shape} belong to, beside the defaults."""
    body = _find_body(shapes)
    backbone, taps, (layer, channels) = _BACKBONES[body]
    width = _last(shapes, f"{_BODY}/{body}/{layer}/weights") / channels
    if _count_anchors(shapes, 0) != 3:
        raise DataError("not 3 anchors on a cell of the finest level (reduce_boxes_in_lowest_layer)")
    size = shapes.get(_INPUT, _IMAGE_SIZE)[:2]
    extras = _find_extras(shapes, body)
    chain = [[_last(shapes, f"{extras[part, level, '']}/weights") for part in "12"] for level in "2345"]
    return (
        *_SETTINGS,
        f"model.backbone={backbone}",
        f"model.width={width}",
        f"model.taps={taps}",
        f"model.image_size={size[0]},{size[1]}",
        f"model.heads={_head_kind(shapes)}",
        f"model.extras={'separable' if ('2', '2', '_depthwise') in extras else 'conv'}",
        f"model.extras_chain={[[*channels, 3, 2, -1] for channels in chain]}",
        f"postprocess.topk_candidates={len(_usual_anchors(size))}",
    )


def places(shapes, classes):
    """Returns {name: Place} of the network that {name: shape} belong to; `classes` is a source.Classes."""
    body = _find_body(shapes)
    layers = {**_backbone_layers(body), **_extra_layers(shapes, body)}
    found = {}
    for name, layer in layers.items():
        found |= _convolution(name, layer)
    for level in _LEVELS:
        found |= _head_places(shapes, level, classes)
    return found


def _find_body(shapes):
    """MobilenetV1 or MobilenetV2."""
    for body in _BACKBONES:
        if any(name.startswith(f"{_BODY}/{body}/") for name in shapes):
            return body
    raise DataError(f"no SSD on MobileNet V1 or V2 of the Object Detection API: it has no {_BODY}/MobilenetV*")


def _last(shapes, name):
    """The size of an array's last axis."""
    if name not in shapes:
        raise DataError(f"weights do not fit: {name[:80]} is missing")
    if not shapes[name] or not shapes[name][-1]:
        raise DataError(f"weights do not fit: {name[:80]} is empty or a lone number")
    return shapes[name][-1]


def _count_anchors(shapes, level):
    """Anchors on a cell of a level."""
    return max(_last(shapes, f"BoxPredictor_{level}/{_BOXES}/biases") // 4, 1)


def _head_kind(shapes):
    """The model.heads of ours."""
    head = f"BoxPredictor_0/{_BOXES}"
    if f"{head}_depthwise/depthwise_weights" in shapes:
        return "lite"
    _last(shapes, f"{head}/weights")
    return "conv" if shapes[f"{head}/weights"][0] == 3 else "conv1x1"


def _find_extras(shapes, body):
    """{(part "1" or "2", level "2".."5", "" or "_depthwise"): prefix} of the auxiliary layers."""
    found = {}
    for name in shapes:
        prefix, _, layer = name.removesuffix("/weights").removesuffix("/depthwise_weights").rpartition("/")
        match = _EXTRA.fullmatch(layer)
        if match and prefix == f"{_BODY}/{body}":
            part, level, _, kind = match.groups("")
            found[part, level, kind] = f"{prefix}/{layer}"
    for level in "2345":
        for part in "12":
            if (part, level, "") not in found:
                raise DataError(f"weights do not fit: {_BODY}/{body}/..._{part}_Conv2d_{level}_... is missing")
    return found


def _backbone_layers(body):
    """{their prefix: (our convolution, our batch norm)} of a backbone."""
    if body == "MobilenetV1":
        layers = {"Conv2d_0": ("conv1", "conv1_bn")}
        for index in range(1, 14):
            for theirs, ours in (("depthwise", "dw"), ("pointwise", "pw")):
                layer = f"conv_{ours}_{index}"
                layers[f"Conv2d_{index}_{theirs}"] = (layer, f"{layer}_bn")
    else:
        layers = {"Conv": ("Conv1", "bn_Conv1"), "Conv_1": ("Conv_1", "Conv_1_bn")}
        for index in range(17):
            theirs, ours = (f"expanded_conv_{index}", f"block_{index}") if index else ("expanded_conv",) * 2
            for part in ("expand", "depthwise", "project") if index else ("depthwise", "project"):
                layers[f"{theirs}/{part}"] = (f"{ours}_{part}", f"{ours}_{part}_BN")
    return {f"{_BODY}/{body}/{prefix}": names for prefix, names in layers.items()}


def _extra_layers(shapes, body):
    """The same of the auxiliary layers."""
    layers = {}
    for (part, level, kind), prefix in _find_extras(shapes, body).items():
        layer = f"extra_{int(level) - 1}" + ("_reduce" if part == "1" else kind)
        layers[prefix] = (layer, f"{layer}_bn")
    return layers


def _convolution(prefix, layers):
    """The places of a convolution and its batch norm."""
    convolution, batch_norm = layers
    kernel = "depthwise_weights" if prefix.endswith("depthwise") else "weights"
    norm = {f"{prefix}/BatchNorm/{part}": Place(batch_norm, part) for part in _BATCH_NORM}
    return {f"{prefix}/{kernel}": Place(convolution, "kernel", _AXES)} | norm


def _head_places(shapes, level, classes):
    num_anchors, found = _count_anchors(shapes, level), {}
    for theirs, ours in ((_BOXES, "box_deltas"), (_CLASSES, "class_logits")):
        prefix, layer = f"BoxPredictor_{level}/{theirs}", f"head_{level + 1}_{ours}"
        names = (f"{prefix}/weights", f"{prefix}/biases")
        if theirs == _BOXES:
            found |= heads.box_places(names, layer, num_anchors, heads.BOX_YX, _AXES)
        else:
            found |= heads.class_places(names, layer, num_anchors, classes, _AXES)
        if f"{prefix}_depthwise/depthwise_weights" in shapes:
            found |= _convolution(f"{prefix}_depthwise", (f"{layer}_depthwise", f"{layer}_depthwise_bn"))
    return found


TFJS_COCO_SSD = DetectorSource(
    about=ENTRIES["tfjs_coco_ssd"],
    open=open_tfjs,
    count_columns=count_columns,
    settings=settings,
    places=places,
    is_unused=is_unused,
    has_background=False,
    classes="coco",
)
TF_OD_SSD_MOBILENET = replace(TFJS_COCO_SSD, about=ENTRIES["tf_od_ssd_mobilenet"], open=open_tf_od)
