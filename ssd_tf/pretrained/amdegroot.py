"""Names of the weights of github.com/amdegroot/ssd.pytorch, and the layers of ours that they belong to."""

from dataclasses import replace

from ssd_tf.pretrained import torch_file
from ssd_tf.pretrained import torch_layout as layout
from ssd_tf.pretrained.catalogue import ENTRIES
from ssd_tf.pretrained.places import Place
from ssd_tf.pretrained.source import BackboneSource, DetectorSource

_SETTINGS = (
    *layout.SSD300_VGG16,
    "postprocess.score_threshold=0.01",
    "postprocess.nms_iou=0.45",
    "postprocess.topk_candidates=200",
    "postprocess.max_detections=200",
    "postprocess.clip=after",
)


def _backbone_places(prefix):
    convolutions = ((f"{prefix}{index}", layer) for index, layer in layout.VGG16_LAYERS.items())
    return {name: place for pair in convolutions for name, place in layout.convolution(*pair).items()}


def _reducedfc_places(shapes):
    places = _backbone_places("")
    # Its networks take RGB; ours by default BGR, as Keras' VGG16.
    return {**places, "0.weight": replace(places["0.weight"], steps=(1, 1, -1, 1))}


def _places(shapes, classes):
    places = {**_backbone_places("vgg."), "L2Norm.weight": Place(layout.VGG16_NORM, "gamma")}
    for number in range(8):
        layer = f"extra_{number // 2 + 1}"
        places |= layout.convolution(f"extras.{number}", layer if number % 2 else f"{layer}_reduce")
    for index, num_anchors in enumerate(layout.SSD300_ANCHORS):
        places |= layout.predictions(f"conf.{index}", f"loc.{index}", index + 1, num_anchors, classes)
    return places


SSD300 = DetectorSource(
    about=ENTRIES["amdegroot_ssd300"],
    open=torch_file.open_tensors,
    count_columns=layout.columns_of("conf.0.bias", layout.SSD300_ANCHORS[0]),
    settings=lambda shapes: _SETTINGS,
    places=_places,
    is_unused=layout.is_counter,
    has_background=True,
    classes="voc",
)
VGG16_REDUCEDFC = BackboneSource(
    about=ENTRIES["vgg16_reducedfc"],
    open=torch_file.open_tensors,
    places=_reducedfc_places,
    is_unused=layout.is_counter,
)
