"""How torch's state dicts lay a network out: names of a module's tensors and their axes; shared by all sources."""

from ssd_tf.errors import DataError, shown
from ssd_tf.pretrained import heads
from ssd_tf.pretrained.places import Place

TO_HWIO = (2, 3, 1, 0)  # torch's kernels are output, input, height, width
_DEPTHWISE_TO_HWIO = (2, 3, 0, 1)  # there is one input a channel
_BATCH_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
# The convolutions of SSD's VGG16 by their number among its modules, activations and pools counted.
VGG16_LAYERS = {
    **{0: "block1_conv1", 2: "block1_conv2", 5: "block2_conv1", 7: "block2_conv2"},
    **{10: "block3_conv1", 12: "block3_conv2", 14: "block3_conv3"},
    **{17: "block4_conv1", 19: "block4_conv2", 21: "block4_conv3"},
    **{24: "block5_conv1", 26: "block5_conv2", 28: "block5_conv3", 31: "fc6", 33: "fc7"},
}
VGG16_NORM = "neck_block4_conv3"
SSD300_ANCHORS = (4, 6, 6, 6, 4, 4)  # per cell of each level
_NUM_SHOWN = 3

# What all of them were trained and are measured with, and what fine-tuning starts from.
SOFTMAX = ("model.weights=none", "loss.classification=softmax", "data.resize=bilinear")
SSD300_VGG16 = (
    *SOFTMAX,
    "model.backbone=vgg16",
    "model.image_size=300",
    "model.preprocessing=custom",
    "model.input_mean=[123, 117, 104]",
    "anchors.preset=ssd300_voc",
    "anchors.clip=centre_size",
    "train.batch_size=16",
    "train.epochs=30",
    "train.learning_rate=0.001",
    "train.weight_decay=5e-4",
)


def is_counter(name):
    """Tells whether an array is a batch norm's count of batches, which has no place in a network of ours."""
    return name.endswith(".num_batches_tracked")


def convolution(module, layer, bias=True):
    """Returns the places of a convolution.

    Args:
      module: what the file calls it.
      layer: name of our layer.
      bias: whether it has one.
    """
    places = {f"{module}.weight": Place(layer, "kernel", TO_HWIO)}
    return {**places, f"{module}.bias": Place(layer, "bias")} if bias else places


def depthwise(module, layer):
    """Returns the place of a depthwise convolution without bias; arguments as of `convolution`."""
    return {f"{module}.weight": Place(layer, "kernel", _DEPTHWISE_TO_HWIO)}


def batch_norm(module, layer):
    """Returns the places of a batch norm; arguments as of `convolution`."""
    return {f"{module}.{theirs}": Place(layer, ours) for theirs, ours in _BATCH_NORM.items()}


def normalized(module, norm_module, layer, norm_layer=""):
    """Returns the places of a convolution without bias and its batch norm.

    Args:
      module, norm_module: what the file calls the two.
      layer: name of our convolution; it is a depthwise one if that says so.
      norm_layer: name of our batch norm; by default that of the convolution and "_bn".
    """
    is_depthwise = layer.endswith("depthwise") or layer.startswith("conv_dw_")
    kernel = depthwise(module, layer) if is_depthwise else convolution(module, layer, bias=False)
    return {**kernel, **batch_norm(norm_module, norm_layer or f"{layer}_bn")}


def predictions(class_module, box_module, level, num_anchors, classes):
    """Returns the places of a level's last class and box layers, as torch's SSDs order their numbers.

    Args:
      class_module, box_module: what the file calls them.
      level: from 1, fine to coarse.
      num_anchors: per cell.
      classes: source.Classes.
    """
    class_names, box_names = ((f"{module}.weight", f"{module}.bias") for module in (class_module, box_module))
    class_layer, box_layer = f"head_{level}_class_logits", f"head_{level}_box_deltas"
    return {
        **heads.class_places(class_names, class_layer, num_anchors, classes, TO_HWIO),
        **heads.box_places(box_names, box_layer, num_anchors, heads.BOX_XY, TO_HWIO),
    }


def columns_of(name, num_anchors):
    """Returns the count_columns of a source.DetectorSource.

    Args:
      name: the bias of one of the file's class layers.
      num_anchors: per cell of its level.
    """

    def count_columns(shapes):
        if name not in shapes:
            others = ", ".join(shown(other)[:80] for other in list(shapes)[:_NUM_SHOWN]) or "nothing"
            raise DataError(f"weights do not fit: {name} is missing; the file begins with {others}")
        (channels,) = shapes[name] if len(shapes[name]) == 1 else (0,)
        if channels % num_anchors or channels < 2 * num_anchors:
            raise DataError(
                f"weights do not fit: {name} is no row of {num_anchors} anchors' classes and background"
            )
        return channels // num_anchors

    return count_columns
