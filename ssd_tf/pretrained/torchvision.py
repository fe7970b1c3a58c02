"""Names of torchvision's SSD weights, and the layers of ours that they belong to."""

from ssd_tf.pretrained import torch_file
from ssd_tf.pretrained import torch_layout as layout
from ssd_tf.pretrained.catalogue import ENTRIES
from ssd_tf.pretrained.places import Place
from ssd_tf.pretrained.source import DetectorSource

_SSD300_SETTINGS = (
    *layout.SSD300_VGG16,
    "model.input_mean=[122.99925, 116.9991, 103.9992]",  # 255 times .48235, .45882 and .40784
    "anchors.preset=ssd300_coco",
    "anchors.clip=size",
    "postprocess.score_threshold=0.01",
    "postprocess.nms_iou=0.45",
    "postprocess.topk_candidates=400",
    "postprocess.max_detections=200",
)
_SSDLITE320_SETTINGS = (
    *layout.SOFTMAX,
    "model.backbone=mobilenet_v3_large",
    "model.padding=symmetric",
    "model.reduced_tail=true",
    "model.taps=expanded_conv_12_expand_activation,conv_1_activation",
    "model.image_size=320",
    "model.preprocessing=tf",
    "model.extras=separable",
    "model.extras_chain=[[256, 512, 3, 2, 1], [128, 256, 3, 2, 1], [128, 256, 3, 2, 1], [64, 128, 3, 2, 1]]",
    "model.heads=lite",
    "anchors.sizes=[0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0]",
    "anchors.ratios=[[2, 3], [2, 3], [2, 3], [2, 3], [2, 3], [2, 3]]",
    "anchors.clip=size",
    "train.batch_size=16",
    "train.epochs=28",
    "train.learning_rate=0.02",
    "train.warmup=0.16",
    "train.weight_decay=4e-5",
    "postprocess.score_threshold=0.001",
    "postprocess.nms_iou=0.55",
    "postprocess.topk_candidates=300",
    "postprocess.max_detections=300",
)
_HEADS = "head.{}_head.module_list.{}"
_MOBILE_ANCHORS = 6
_NUM_LEVELS = 6
_SQUEEZED = (3, 4, 5, 10, 11, 12, 13, 14)  # the blocks with squeeze-and-excite, from 0
_SPLIT = 12  # the block whose expansion ends one stage


def _ssd300_places(shapes, classes):
    places = {"backbone.scale_weight": Place(layout.VGG16_NORM, "gamma")}
    for index, layer in layout.VGG16_LAYERS.items():
        places |= layout.convolution(_vgg16_module(index), layer)
    for level in range(1, 5):
        places |= layout.convolution(f"backbone.extra.{level}.0", f"extra_{level}_reduce")
        places |= layout.convolution(f"backbone.extra.{level}.2", f"extra_{level}")
    for index, num_anchors in enumerate(layout.SSD300_ANCHORS):
        modules = _HEADS.format("classification", index), _HEADS.format("regression", index)
        places |= layout.predictions(*modules, index + 1, num_anchors, classes)
    return places


def _vgg16_module(index):
    """torchvision's name for a module that VGG16 numbers; from pool4 on they belong to its first extra layer."""
    if index < 23:
        return f"backbone.features.{index}"
    return f"backbone.extra.0.{index - 23}" if index < 30 else f"backbone.extra.0.7.{index - 30}"


def _ssdlite320_places(shapes, classes):
    places = _mobilenet_v3_places()
    for level in range(1, 5):
        module, layer = f"backbone.extra.{level - 1}", f"extra_{level}"
        for part, name in enumerate((f"{layer}_reduce", f"{layer}_depthwise", layer)):
            places |= layout.normalized(f"{module}.{part}.0", f"{module}.{part}.1", name)
    for index in range(_NUM_LEVELS):
        modules = _HEADS.format("classification", index), _HEADS.format("regression", index)
        for module, key in zip(modules, ("class_logits", "box_deltas"), strict=True):
            layer = f"head_{index + 1}_{key}_depthwise"
            places |= layout.normalized(f"{module}.0.0", f"{module}.0.1", layer)
        last = (f"{module}.1" for module in modules)
        places |= layout.predictions(*last, index + 1, _MOBILE_ANCHORS, classes)
    return places


def _mobilenet_v3_places():
    places = layout.normalized("backbone.features.0.0.0", "backbone.features.0.0.1", "conv")
    for index in range(15):
        layer = f"expanded_conv_{index}_" if index else "expanded_conv_"
        for part, module in _block_modules(index).items():
            if part == "squeeze_excite":
                places |= layout.convolution(f"{module}.fc1", f"{layer}squeeze_excite_conv")
                places |= layout.convolution(f"{module}.fc2", f"{layer}squeeze_excite_conv_1")
            else:
                places |= layout.normalized(f"{module}.0", f"{module}.1", f"{layer}{part}")
    return places | layout.normalized("backbone.features.1.3.0", "backbone.features.1.3.1", "conv_1")


def _block_modules(index):
    """{part: torchvision's module} of an inverted residual."""
    parts = ["expand"] if index else []
    parts += ["depthwise", *(["squeeze_excite"] if index in _SQUEEZED else []), "project"]
    if index == _SPLIT:
        modules = ["backbone.features.0.13", *(f"backbone.features.1.0.{number}" for number in (1, 2, 3))]
        return dict(zip(parts, modules, strict=True))
    stage, number = (0, index + 1) if index < _SPLIT else (1, index - _SPLIT)
    return {part: f"backbone.features.{stage}.{number}.block.{place}" for place, part in enumerate(parts)}


SSD300_VGG16 = DetectorSource(
    about=ENTRIES["torchvision_ssd300_vgg16"],
    open=torch_file.open_tensors,
    count_columns=layout.columns_of(f"{_HEADS.format('classification', 0)}.bias", layout.SSD300_ANCHORS[0]),
    settings=lambda shapes: _SSD300_SETTINGS,
    places=_ssd300_places,
    is_unused=layout.is_counter,
    has_background=True,
    classes="coco",
)
SSDLITE320_MOBILENET_V3_LARGE = DetectorSource(
    about=ENTRIES["torchvision_ssdlite320_mobilenet_v3_large"],
    open=torch_file.open_tensors,
    count_columns=layout.columns_of(f"{_HEADS.format('classification', 0)}.1.bias", _MOBILE_ANCHORS),
    settings=lambda shapes: _SSDLITE320_SETTINGS,
    places=_ssdlite320_places,
    is_unused=layout.is_counter,
    has_background=True,
    classes="coco",
)
