"""The MultiBox loss against torchvision's numbers, hand computation and a NumPy rendering."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ssd_tf.boxes import matcher
from ssd_tf.training.losses import BoxLoss, ClassLoss, log_softmax_losses, mine_negatives

TO_YXHW = [1, 0, 3, 2]


@pytest.fixture(scope="module")
def core(golden):
    with np.load(golden / "torchvision_ssd_core.npz") as values:
        return dict(values)


def golden_batch(core):
    """Targets of the eight golden images and the outputs of `loss_note`."""
    labels = np.zeros((8, 8732), np.int32)
    deltas = np.zeros((8, 8732, 5), np.float32)
    for i in range(1, 8):  # image 0 has no boxes
        matched = core[f"matched_gt_index_{i}"]
        places = core[f"positive_anchor_{i}"]
        assert np.array_equal(np.flatnonzero(matched >= 0), places)
        labels[i, places] = core[f"gt_labels_{i}"][matched[places]]
        deltas[i, places, :4] = core[f"encoded_{i}"][:, TO_YXHW]
        deltas[i, places, 4] = 1
    logits = np.random.default_rng(11).standard_normal((8, 8732, 21)).astype(np.float32)
    predicted = np.random.default_rng(12).standard_normal((8, 8732, 4)).astype(np.float32)[..., TO_YXHW]
    return labels, deltas, logits, predicted


def test_losses_are_torchvisions(core):
    labels, deltas, logits, predicted = golden_batch(core)
    num_positives = deltas[..., 4].sum()
    class_sums, box_sums = ClassLoss().call(labels, logits), BoxLoss().call(deltas, predicted)
    assert class_sums.shape == box_sums.shape == (8,)
    np.testing.assert_allclose(np.sum(class_sums) / num_positives, core["loss_classification"], rtol=1e-5)
    np.testing.assert_allclose(np.sum(box_sums) / num_positives, core["loss_bbox_regression"], rtol=1e-5)


def test_torchvisions_losses_with_the_sample_weight(core):
    labels, deltas, logits, predicted = golden_batch(core)
    weight = np.full(8, matcher.batch_weight(deltas[..., 4].sum(), 8))
    np.testing.assert_allclose(ClassLoss()(labels, logits, weight), core["loss_classification"], rtol=1e-5)
    np.testing.assert_allclose(BoxLoss()(deltas, predicted, weight), core["loss_bbox_regression"], rtol=1e-5)


def test_cross_entropy_by_hand():
    logits = np.float32([[[0, 0, 0], [0, np.log(3), 0], [1000, 0, 0], [0, 1000, 0]]])
    losses = log_softmax_losses(logits, np.int32([[0, 1, 0, 0]]))
    np.testing.assert_allclose(losses, [[np.log(3), np.log(5 / 3), 0, 1000]], rtol=1e-6)


def mine(losses, candidates, num_wanted):
    """mine_negatives of one image, as a list of the indices chosen."""
    losses, candidates = np.float32([losses]), np.bool_([candidates])
    chosen = mine_negatives(keras.ops.convert_to_tensor(losses), candidates, np.int32([num_wanted]))
    return np.flatnonzero(chosen).tolist()


def test_mining_takes_the_largest():
    losses = [1, 5, 3, 4, 2]
    assert mine(losses, [1, 1, 1, 1, 1], 2) == [1, 3]
    assert mine(losses, [1, 0, 1, 1, 1], 2) == [2, 3]
    assert mine(losses, [1, 1, 1, 1, 1], 5) == [0, 1, 2, 3, 4]
    assert mine(losses, [1, 0, 0, 1, 1], 9) == [0, 3, 4]
    assert mine(losses, [1, 1, 1, 1, 1], 0) == []
    assert mine(losses, [0, 0, 0, 0, 0], 3) == []


def test_mining_takes_an_exact_number_among_ties():
    assert mine([2, 2, 2, 2], [1, 1, 1, 1], 3) == [0, 1, 2]
    assert mine([2, 2, 2, 2], [0, 1, 1, 1], 2) == [1, 2]
    assert mine([1, 2, 3, 2, 2], [1, 1, 1, 1, 1], 3) == [1, 2, 3]
    assert mine([0, 0, 0], [1, 1, 1], 2) == [0, 1]
    assert mine([0, 0, 0], [1, 0, 1], 3) == [0, 2]


def test_mining_against_sorting():
    rng = np.random.default_rng(0)
    losses = rng.integers(0, 6, (40, 50)).astype(np.float32)  # few levels: many ties
    candidates = rng.random((40, 50)) < 0.7
    wanted = rng.integers(0, 50, 40).astype(np.int32)
    chosen = np.asarray(mine_negatives(keras.ops.convert_to_tensor(losses), candidates, wanted))
    for row in range(40):
        order = sorted(np.flatnonzero(candidates[row]), key=lambda i, row=row: (-losses[row, i], i))
        assert np.flatnonzero(chosen[row]).tolist() == sorted(order[: wanted[row]])


def random_logits(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def reference_class_loss(labels, logits, ratio=3.0, min_negatives=0):
    """The definition, one image at a time."""
    sums = []
    for row, values in zip(labels, logits.astype(np.float64), strict=True):
        losses = np.log(np.exp(values).sum(-1)) - values[np.arange(len(row)), np.maximum(row, 0)]
        negatives = np.sort(losses[row == 0])[::-1]
        wanted = max(int(ratio * (row > 0).sum()), min_negatives)
        sums.append(losses[row > 0].sum() + negatives[:wanted].sum())
    return sums


@pytest.mark.parametrize(
    ("ratio", "min_negatives"), [(3.0, 0), (1.0, 0), (0.0, 0), (3.0, 4), (1000.0, 0), (2.5, 1)]
)
def test_class_loss_is_its_definition(ratio, min_negatives):
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 0, 0, 0, 0, 0, 0, 0, 1, 2, -1], (6, 60)).astype(np.int32)
    labels[0] = np.minimum(labels[0], 0)
    logits = random_logits((6, 60, 3))
    expected = reference_class_loss(labels, logits, ratio, min_negatives)
    np.testing.assert_allclose(ClassLoss(ratio, min_negatives).call(labels, logits), expected, rtol=1e-5)


def class_gradient(loss, labels, logits):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(loss.call(labels, logits))
    return np.asarray(tape.gradient(total, logits))


def test_unmined_and_ignored_anchors_have_no_gradient():
    labels = np.int32([[2, 0, 0, 0, 0, 0, -1, -1]])
    logits = random_logits((1, 8, 3))
    logits[0, 6] = [-50, 50, 0]  # would be the hardest negative by far
    losses = np.asarray(log_softmax_losses(logits, np.maximum(labels, 0)))[0]
    mined = 1 + np.argsort(-losses[1:6])[:3]
    gradient = class_gradient(ClassLoss(), labels, logits)[0]
    moving = {0, *mined.tolist()}
    for anchor in range(8):
        assert np.any(gradient[anchor] != 0) == (anchor in moving), anchor
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient[0], probabilities[0] - [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(gradient[mined], probabilities[mined] - [1, 0, 0], atol=1e-6)


def test_image_without_positives_costs_exactly_nothing():
    labels = np.int32([[0] * 7 + [-1]])
    logits = random_logits((1, 8, 3))
    targets = np.zeros((1, 8, 5), np.float32)
    predicted = tf.constant(random_logits((1, 8, 4)) * 1e18)
    assert ClassLoss().call(labels, logits).numpy().tolist() == [0.0]
    assert not np.any(class_gradient(ClassLoss(), labels, logits))
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        loss = BoxLoss().call(targets, predicted)
    assert loss.numpy().tolist() == [0.0]
    assert not np.any(tape.gradient(loss, predicted))  # neither NaN nor anything else
    weight = matcher.batch_weight(0.0, 1)
    assert float(weight) == 1.0
    assert float(ClassLoss()(labels, logits, weight)) == float(BoxLoss()(targets, predicted, weight)) == 0.0


def test_min_negatives_train_on_empty_images():
    labels = np.int32([[0, 0, 0, -1]])
    logits = random_logits((1, 4, 3))
    losses = np.sort(np.asarray(log_softmax_losses(logits, np.maximum(labels, 0)))[0, :3])
    loss = ClassLoss(min_negatives=2).call(labels, logits)
    np.testing.assert_allclose(loss, [losses[1] + losses[2]], rtol=1e-6)
    # Three mined negatives count as one positive in the normaliser.
    assert float(matcher.batch_weight(0.0, 4, min_negatives=3)) == 1.0
    assert float(matcher.batch_weight(8.0, 4, min_negatives=3)) == 0.5


def test_loss_of_an_image_is_its_own():
    rng = np.random.default_rng(4)
    labels = rng.choice([0, 0, 0, 1, 2, -1], (3, 30)).astype(np.int32)
    logits = random_logits((3, 30, 3))
    together = ClassLoss(min_negatives=1).call(labels, logits).numpy()
    alone = [ClassLoss(min_negatives=1).call(labels[i : i + 1], logits[i : i + 1]).numpy()[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    changed = logits.copy()
    changed[1:] *= 30
    assert ClassLoss(min_negatives=1).call(labels, changed).numpy()[0] == together[0]


def test_smooth_l1_by_hand():
    targets = np.zeros((2, 3, 5), np.float32)
    targets[0, 0] = [0, 1, -1, 0.5, 1]
    targets[0, 2] = [0, 0, 0, 0, 1]
    predicted = np.zeros((2, 3, 4), np.float32)
    predicted[0, 0] = [0.5, 1, 2, 1.5]  # distances .5, 0, 3, 1: .125 + 0 + 2.5 + .5
    predicted[0, 1] = 100  # not matched
    predicted[0, 2] = [-2, 0, 0, 0]  # 1.5
    predicted[1] = 7  # an image without matches
    np.testing.assert_allclose(BoxLoss().call(targets, predicted), [4.625, 0.0], rtol=1e-6)
    np.testing.assert_allclose(BoxLoss(weight=2.0).call(targets, predicted), [9.25, 0.0], rtol=1e-6)


@pytest.mark.parametrize("loss", [ClassLoss(2.0, 5), BoxLoss(0.5)])
def test_losses_survive_serialisation(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    assert type(again) is type(loss)


def scaled_model(num_anchors):
    """Outputs are the inputs times one learned number each, 1 at the beginning."""
    inputs, outputs = [], {}
    for name, width in (("class_logits", 3), ("box_deltas", 4)):
        inputs.append(keras.Input((num_anchors, width), name=f"{name}_in"))
        start = keras.initializers.Constant(1.0)
        layer = keras.layers.EinsumDense("ban,n->ban", (num_anchors, width), kernel_initializer=start, name=name)
        outputs[name] = layer(inputs[-1])
    return keras.Model(inputs, outputs)


def test_fit_minimises_sum_over_positives():
    rng = np.random.default_rng(5)
    labels = rng.choice([0, 0, 0, 0, 1, 2, -1], (4, 40)).astype(np.int32)
    labels[1] = np.minimum(labels[1], 0)  # very unequal images
    targets = rng.normal(0, 2, (4, 40, 5)).astype(np.float32)
    targets[..., 4] = labels > 0
    inputs = [random_logits((4, 40, 3), 6), random_logits((4, 40, 4), 7)]
    positives = targets[..., 4].sum()
    weight = np.full(4, matcher.batch_weight(positives, 4))
    model = scaled_model(40)
    rate = 0.01
    losses = {"class_logits": ClassLoss(), "box_deltas": BoxLoss()}
    model.compile(keras.optimizers.SGD(rate), loss=losses)
    data = tf.data.Dataset.from_tensors((tuple(inputs), {"class_logits": labels, "box_deltas": targets}, weight))
    history = model.fit(data, shuffle=False, verbose=0).history
    expected = np.sum(reference_class_loss(labels, inputs[0])) / positives
    distances = np.abs(targets[..., :4] - inputs[1])[labels > 0]
    box_expected = np.where(distances < 1, distances**2 / 2, distances - 0.5).sum() / positives
    np.testing.assert_allclose(history["loss"], [expected + box_expected], rtol=1e-5)
    np.testing.assert_allclose(history["class_logits_loss"], [expected], rtol=1e-5)
    np.testing.assert_allclose(history["box_deltas_loss"], [box_expected], rtol=1e-5)
    # The step is that of sum / positives too.
    slopes = np.clip(inputs[1] - targets[..., :4], -1, 1) * inputs[1]
    step = rate * slopes[labels > 0].sum(axis=0) / positives
    np.testing.assert_allclose(model.get_layer("box_deltas").kernel, 1 - step, rtol=1e-5)
