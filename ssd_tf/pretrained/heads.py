"""Where the prediction heads of other SSDs lie in ours: order of box numbers and of class columns."""

from ssd_tf.pretrained.places import Place

BOX_XY = (1, 0, 3, 2)  # (dx, dy, dw, dh) in the file, (ty, tx, th, tw) here
BOX_YX = (0, 1, 2, 3)


def box_places(names, layer, num_anchors, order, axes):
    """Returns the places of a level's last box layer.

    Args:
      names: (kernel, bias) as the file calls them.
      layer: name of our layer.
      num_anchors: anchors per cell.
      order: BOX_XY or BOX_YX.
      axes: transposition of the kernel.
    """
    return _places(names, layer, num_anchors, order, 4, axes)


def class_places(names, layer, num_anchors, classes, axes):
    """Returns the places of a level's last class layer; `classes`: source.Classes, the rest as of box_places."""
    return _places(names, layer, num_anchors, classes.order, classes.total, axes)


def _places(names, layer, num_anchors, order, total, axes):
    take = tuple(anchor * total + column for anchor in range(num_anchors) for column in order)
    rest = {"take": take, "of": num_anchors * total}
    kernel, bias = names
    return {kernel: Place(layer, "kernel", axes, **rest), bias: Place(layer, "bias", **rest)}
