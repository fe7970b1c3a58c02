"""Names of the weights of github.com/qfgaohao/pytorch-ssd, and the layers of ours that they belong to."""

import contextlib

import numpy as np

from ssd_tf.pretrained import torch_file
from ssd_tf.pretrained import torch_layout as layout
from ssd_tf.pretrained.catalogue import ENTRIES
from ssd_tf.pretrained.source import DetectorSource

_CLASS_MODULE, _BOX_MODULE = "classification_headers", "regression_headers"
_MOBILE_ANCHORS = 6
_NUM_LEVELS = 6
_POSTPROCESS = (
    "postprocess.score_threshold=0.01",
    "postprocess.nms_iou=0.45",
    "postprocess.topk_candidates=200",
    "postprocess.max_detections=200",
    "postprocess.clip=after",
)
_EPSILON = "model.norm_epsilon=1e-5"
_VGG16_SETTINGS = (*layout.SSD300_VGG16, *_POSTPROCESS, _EPSILON, "model.tap_norm=bn")
_MOBILE_SETTINGS = (
    *layout.SOFTMAX,
    *_POSTPROCESS,
    _EPSILON,
    "model.image_size=300",
    "model.padding=symmetric",
    "model.preprocessing=custom",
    "model.input_mean=[127, 127, 127]",
    "model.input_scale=0.0078125",
    "anchors.preset=mobile300",
    "train.batch_size=16",
    "train.epochs=28",
    "train.learning_rate=0.01",
    "train.warmup=0.16",
    "train.weight_decay=5e-4",
)
_MB1_SETTINGS = (
    *_MOBILE_SETTINGS,
    "model.backbone=mobilenet_v1",
    "model.activation=relu",
    "model.taps=conv_pw_11_relu,conv_pw_13_relu",
    "model.extras_chain=[[256, 512, 3, 2, 1], [128, 256, 3, 2, 1], [128, 256, 3, 2, 1], [128, 256, 3, 2, 1]]",
)
_MB2_SETTINGS = (
    *_MOBILE_SETTINGS,
    "model.backbone=mobilenet_v2",
    "model.taps=block_13_expand_relu,out_relu",
    "model.extras=inverted",
    "model.extras_chain=[[256, 512, 3, 2, 1], [128, 256, 3, 2, 1], [128, 256, 3, 2, 1], [64, 64, 3, 2, 1]]",
    "model.heads=lite",
    "model.last_head=conv1x1",
)


def _vgg16_places(shapes, classes):
    places = layout.batch_norm("source_layer_add_ons.0", layout.VGG16_NORM)
    for index, layer in layout.VGG16_LAYERS.items():
        places |= layout.convolution(f"base_net.{index}", layer)
    return places | _plain_extras() | _plain_heads(layout.SSD300_ANCHORS, classes)


def _mb1_places(shapes, classes):
    places = layout.normalized("base_net.0.0", "base_net.0.1", "conv1")
    for block in range(1, 14):
        places |= layout.normalized(f"base_net.{block}.0", f"base_net.{block}.1", f"conv_dw_{block}")
        places |= layout.normalized(f"base_net.{block}.3", f"base_net.{block}.4", f"conv_pw_{block}")
    return places | _plain_extras() | _plain_heads((_MOBILE_ANCHORS,) * _NUM_LEVELS, classes)


def _plain_extras():
    places = {}
    for level in range(1, 5):
        places |= layout.convolution(f"extras.{level - 1}.0", f"extra_{level}_reduce")
        places |= layout.convolution(f"extras.{level - 1}.2", f"extra_{level}")
    return places


def _plain_heads(counts, classes):
    places = {}
    for index, num_anchors in enumerate(counts):
        modules = f"{_CLASS_MODULE}.{index}", f"{_BOX_MODULE}.{index}"
        places |= layout.predictions(*modules, index + 1, num_anchors, classes)
    return places


def _mb2_places(shapes, classes):
    places = layout.normalized("base_net.0.0", "base_net.0.1", "Conv1", norm_layer="bn_Conv1")
    for index in range(17):
        layer = f"block_{index}_" if index else "expanded_conv_"
        parts = ("expand", "depthwise", "project") if index else ("depthwise", "project")
        places |= _inverted_residual(
            f"base_net.{index + 1}", [(f"{layer}{part}", f"{layer}{part}_BN") for part in parts]
        )
    places |= layout.normalized("base_net.18.0", "base_net.18.1", "Conv_1")
    for level in range(1, 5):
        layers = (f"extra_{level}_reduce", f"extra_{level}_depthwise", f"extra_{level}")
        places |= _inverted_residual(f"extras.{level - 1}", [(layer, f"{layer}_bn") for layer in layers])
    for index in range(_NUM_LEVELS):
        places |= _lite_heads(index, classes)
    return places


def _inverted_residual(module, layers):
    """The places of convolutions with a batch norm and an activation each, numbered through."""
    places = {}
    for number, (layer, norm_layer) in enumerate(layers):
        first = f"{module}.conv.{3 * number}", f"{module}.conv.{3 * number + 1}"
        places |= layout.normalized(*first, layer, norm_layer=norm_layer)
    return places


def _lite_heads(index, classes):
    """The places of a level's heads; those of the last level are lone 1x1 convolutions."""
    modules = f"{_CLASS_MODULE}.{index}", f"{_BOX_MODULE}.{index}"
    if index == _NUM_LEVELS - 1:
        return layout.predictions(*modules, index + 1, _MOBILE_ANCHORS, classes)
    last = (f"{module}.3" for module in modules)
    places = layout.predictions(*last, index + 1, _MOBILE_ANCHORS, classes)
    for module, key in zip(modules, ("class_logits", "box_deltas"), strict=True):
        layer = f"head_{index + 1}_{key}_depthwise"
        places |= layout.depthwise(f"{module}.0", layer)
        norm = layout.batch_norm(f"{module}.1", f"{layer}_bn")
        mean = norm.pop(f"{module}.1.running_mean")
        places |= {**norm, _shifted_mean(module): mean}
    return places


def _shifted_mean(module):
    """What a head's mean less its depthwise convolution's bias, which we do not have, is called."""
    return f"{module}.1.running_mean - {module}.0.bias"


@contextlib.contextmanager
def _open_mb2(path):
    """As torch_file.open_tensors, with every such bias taken off the mean that follows it."""
    with torch_file.open_tensors(path) as (shapes, read):
        pairs = dict(_shifted_means(shapes))
        consumed = {name for pair in pairs.values() for name in pair}
        rest = {name: shape for name, shape in shapes.items() if name not in consumed}

        def read_shifted(name):
            if name not in pairs:
                return read(name)
            mean, bias = pairs[name]
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite the caller refuses
                return read(mean) - read(bias)

        yield {**rest, **{name: shapes[mean] for name, (mean, _) in pairs.items()}}, read_shifted


def _shifted_means(shapes):
    """(new name, (mean, bias)) of the heads that have both, of one shape."""
    for side in (_CLASS_MODULE, _BOX_MODULE):
        for index in range(_NUM_LEVELS - 1):
            module = f"{side}.{index}"
            pair = f"{module}.1.running_mean", f"{module}.0.bias"
            if all(name in shapes for name in pair) and shapes[pair[0]] == shapes[pair[1]]:
                yield _shifted_mean(module), pair


def _source(name, settings, places, columns, opener=torch_file.open_tensors):
    return DetectorSource(
        about=ENTRIES[name],
        open=opener,
        count_columns=layout.columns_of(*columns),
        settings=lambda shapes: settings,
        places=places,
        is_unused=layout.is_counter,
        has_background=True,
        classes="voc",
    )


MB1_SSD = _source(
    "qfgaohao_mb1_ssd",
    _MB1_SETTINGS,
    _mb1_places,
    (f"{_CLASS_MODULE}.0.bias", _MOBILE_ANCHORS),
)
MB2_SSD_LITE = _source(
    "qfgaohao_mb2_ssd_lite",
    _MB2_SETTINGS,
    _mb2_places,
    (f"{_CLASS_MODULE}.0.3.bias", _MOBILE_ANCHORS),
    _open_mb2,
)
VGG16_SSD = _source(
    "qfgaohao_vgg16_ssd",
    _VGG16_SETTINGS,
    _vgg16_places,
    (f"{_CLASS_MODULE}.0.bias", layout.SSD300_ANCHORS[0]),
)
