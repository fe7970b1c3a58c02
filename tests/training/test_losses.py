"""The MultiBox loss against torchvision's numbers, hand computation and a NumPy rendering."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from ssd_tf import config as configs
from ssd_tf.boxes import coder, matcher, ops
from ssd_tf.config import LossConfig
from ssd_tf.data import targets as data_targets
from ssd_tf.errors import ConfigError
from ssd_tf.training.losses import (
    BoxLoss,
    ClassLoss,
    focal_losses,
    log_softmax_losses,
    make_losses,
    mine_negatives,
    sigmoid_losses,
)

TO_YXHW = [1, 0, 3, 2]
ANCHORS = np.float32([[0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0, 0.5, 0.4, 0.9]])
IOU_KINDS = ["giou", "diou", "ciou"]


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


def test_class_weights_of_softmax_by_hand():
    # Of three columns: ln 5 - ln 3 on the second, ln 5 on the others, ln 3 where all are equal.
    logits = np.log(np.float32([[[1, 3, 1], [1, 3, 1], [1, 3, 1], [1, 1, 1], [1, 3, 1]]]))
    labels = np.int32([[1, 2, 0, 0, -1]])
    ln3, ln5 = np.log(3), np.log(5)
    loss = ClassLoss(0.5, class_weights=(0.5, 4.0)).call(labels, logits)
    np.testing.assert_allclose(loss, [0.5 * (ln5 - ln3) + 4 * ln5 + ln5], rtol=1e-6)  # one negative, the hardest
    unmined = ClassLoss(0.0, class_weights=(0.0, 1.0)).call(labels, logits)
    np.testing.assert_allclose(unmined, [ln5], rtol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "focal"])
def test_class_weights_multiply_the_loss_and_its_gradient(kind):
    rng = np.random.default_rng(30)
    labels = rng.choice([0, 0, 0, 0, 1, 2, 3, -1], (3, 40)).astype(np.int32)
    logits, weights = random_logits((3, 40, 3 + (kind == "softmax")), 31), (0.25, 3.0, 1.0)
    of_anchors = np.float32([1, *weights])[np.maximum(labels, 0)]
    plain, weighted = ClassLoss(2.0, kind=kind), ClassLoss(2.0, kind=kind, class_weights=weights)
    gradient = class_gradient(plain, labels, logits)
    chosen = (gradient != 0).any(-1)  # the same anchors are mined
    np.testing.assert_allclose(
        class_gradient(weighted, labels, logits), gradient * of_anchors[..., None], rtol=1e-5, atol=1e-7
    )
    options = {"alpha": 0.25, "gamma": 2.0} if kind == "focal" else {}
    losses = {"softmax": log_softmax_losses, "sigmoid": sigmoid_losses, "focal": focal_losses}[kind]
    sums = np.sum(losses(logits, np.maximum(labels, 0), **options) * of_anchors * chosen, axis=1)
    np.testing.assert_allclose(weighted.call(labels, logits), sums, rtol=1e-5)
    same = ClassLoss(2.0, kind=kind, class_weights=(1.0, 1.0, 1.0)).call(labels, logits)
    np.testing.assert_array_equal(same, plain.call(labels, logits))


def test_class_weights_are_one_a_class():
    settings = LossConfig(class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"^loss\.class_weights has 2 entries for 3 classes, it needs one for e"):
        configs.Config(loss=settings, model=configs.ModelConfig(num_classes=3))
    unknown = configs.Config(loss=settings)  # the records tell how many there are
    with pytest.raises(ConfigError, match=r"^loss\.class_weights has 2 entries for 1 classes"):
        configs.replace(unknown, model__num_classes=1)
    assert configs.replace(unknown, model__num_classes=2).loss.class_weights == (1.0, 2.0)


def test_an_image_without_objects_teaches_what_background_is():
    found = data_targets.build_targets(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), np.tile(ANCHORS, (3, 1))
    )
    labels, logits = found["class_logits"][None], random_logits((1, 9, 3), 32)
    assert labels.numpy().tolist() == [[0] * 9] and not found["box_deltas"].numpy().any()

    def loss(**settings):
        return make_losses(LossConfig(**settings), ANCHORS)["class_logits"].call(labels, logits).numpy()[0]

    losses = np.sort(np.log(np.exp(logits).sum(-1)) - logits[..., 0])[0]
    np.testing.assert_allclose(loss(min_negatives=3), losses[-3:].sum(), rtol=1e-5)
    np.testing.assert_allclose(loss(min_negatives=3, class_weights=(9.0, 9.0)), losses[-3:].sum(), rtol=1e-5)
    assert loss(min_negatives=0) == 0.0
    wrong = 1 / (1 + np.exp(-logits))
    focal = 0.75 * (wrong**2 * -np.log(1 - wrong)).sum()  # every anchor, every class
    np.testing.assert_allclose(loss(classification="focal"), focal, rtol=1e-5)
    assert focal > 1


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


@pytest.mark.parametrize(
    "loss",
    [
        ClassLoss(2.0, 5),
        ClassLoss(2.0, 5, "sigmoid", 0.1),
        ClassLoss(kind="focal", focal_alpha=0.75, focal_gamma=1.5),
        ClassLoss(class_weights=(2.0, 0.5)),
        BoxLoss(0.5),
        BoxLoss(0.5, "ciou", ANCHORS / 3),
    ],
)
def test_losses_survive_serialisation(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    assert type(again) is type(loss)
    assert {*inspect.signature(type(loss)).parameters} - {"options"} <= {*loss.get_config()}
    np.testing.assert_array_equal(getattr(again, "anchors", None), getattr(loss, "anchors", None))


def test_label_smoothing_of_softmax_by_hand():
    logits = np.float32([[[0, np.log(3), 0]] * 2 + [[0, 0, 0]]])
    losses = log_softmax_losses(logits, np.int32([[1, 0, 2]]), 0.3)  # targets .8, .1, .1
    ln3, ln5 = np.log(3), np.log(5)
    np.testing.assert_allclose(losses, [[ln5 - 0.8 * ln3, ln5 - 0.1 * ln3, ln3]], rtol=1e-6)
    loss = ClassLoss(kind="softmax", label_smoothing=0.3).call(np.int32([[1, 0, -1]]), logits)
    np.testing.assert_allclose(loss, [2 * ln5 - 0.9 * ln3], rtol=1e-6)


LN2, LN3, LN4 = np.log([2, 3, 4])


def test_sigmoid_losses_by_hand():
    logits = np.float32([[[LN3, 0]] * 3])  # probabilities 3/4 and 1/2
    labels = np.int32([[1, 2, 0]])
    np.testing.assert_allclose(
        sigmoid_losses(logits, labels), [[LN4 - LN3 + LN2, LN4 + LN2, LN4 + LN2]], rtol=1e-6
    )
    smoothed = [0.9 * (LN4 - LN3) + 0.1 * LN4 + LN2, *[0.9 * LN4 + 0.1 * (LN4 - LN3) + LN2] * 2]
    np.testing.assert_allclose(sigmoid_losses(logits, labels, 0.2), [smoothed], rtol=1e-6)


def test_sigmoid_loss_is_that_of_positives_and_the_hardest_negatives():
    levels = np.log(np.float32([[1, 3], [7, 1], [1, 1], [4, 4], [1, 5], [99, 99]]))
    labels = np.int32([[2, 0, 0, 0, 0, -1]])
    # The positive: ln 2 + ln 4/3. The negatives: ln 8 + ln 2, 2 ln 2, 2 ln 5 and ln 2 + ln 6 (by its highest score
    # alone it would be mined, not the one before).
    expected = LN2 + LN4 - LN3 + np.log(8 * 2 * 5 * 5)
    np.testing.assert_allclose(ClassLoss(2.0, kind="sigmoid").call(labels, levels[None]), [expected], rtol=1e-6)
    smoothed = ClassLoss(0.0, kind="sigmoid", label_smoothing=0.2).call(labels, levels[None])
    np.testing.assert_allclose(smoothed, [LN2 + 0.9 * (LN4 - LN3) + 0.1 * LN4], rtol=1e-6)


def test_focal_losses_by_hand():
    logits = np.float32([[[LN3, 0]] * 3])
    labels = np.int32([[1, 2, 0]])
    other = 0.75 * 0.5**2 * LN2  # probability 1/2, not the label
    wrong = 0.75 * 0.75**2 * LN4  # probability 3/4, not the label
    expected = [0.25 * 0.25**2 * (LN4 - LN3) + other, wrong + other / 3, wrong + other]
    np.testing.assert_allclose(focal_losses(logits, labels, 0.25, 2.0), [expected], rtol=1e-6)
    expected = [0.9 * 0.25**0.5 * (LN4 - LN3) + 0.1 * 0.5**0.5 * LN2]
    np.testing.assert_allclose(focal_losses(logits, labels, 0.9, 0.5)[:, :1], [expected], rtol=1e-6)
    smoothed = 0.25 * 0.25**2 * (0.9 * (LN4 - LN3) + 0.1 * LN4) + other  # the weights are as before
    np.testing.assert_allclose(focal_losses(logits, labels, 0.25, 2.0, 0.2)[:, :1], [[smoothed]], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_focal_loss_without_focus_is_half_the_cross_entropy(smoothing):
    labels = np.random.default_rng(8).integers(0, 4, (3, 20)).astype(np.int32)
    logits = random_logits((3, 20, 3), 9)
    focal = focal_losses(logits, labels, 0.5, 0.0, smoothing)
    np.testing.assert_allclose(focal, 0.5 * sigmoid_losses(logits, labels, smoothing), rtol=1e-6)


def test_focal_loss_takes_every_anchor_but_the_ignored():
    labels = np.int32([[1, 0, 0, -1], [0, 0, -1, -1]])
    logits = np.float32([[[LN3, 0]] * 4] * 2)
    loss = ClassLoss(0.0, kind="focal", focal_alpha=0.4, focal_gamma=1.0)
    negative = 0.6 * (0.75 * LN4 + 0.5 * LN2)
    positive = 0.4 * 0.25 * (LN4 - LN3) + 0.6 * 0.5 * LN2
    np.testing.assert_allclose(loss.call(labels, logits), [positive + 2 * negative, 2 * negative], rtol=1e-6)
    gradient = class_gradient(loss, labels, logits)
    assert np.all((gradient != 0).any(-1) == (labels >= 0))


EXTREMES = [-1000, 0, 1000]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "focal"])
def test_class_losses_are_finite_for_large_logits(kind, gamma, smoothing):
    logits = np.float32([[[a, b, c] for a in EXTREMES for b in EXTREMES for c in EXTREMES]])
    labels = np.int32([[1, 2, 0] * 9])
    loss = ClassLoss(100.0, 0, kind, smoothing, 0.25, gamma)
    assert np.all(np.isfinite(loss.call(labels, logits)))
    gradient = class_gradient(loss, labels, logits)
    assert np.all(np.isfinite(gradient)) and np.abs(gradient).max() > 0.01


def test_extreme_logits_by_hand():
    logits = np.float32([[[1000, -1000], [-1000, 1000], [-1000, -20]]])
    labels = np.int32([[1, 1, 0]])
    np.testing.assert_allclose(sigmoid_losses(logits, labels), [[0, 2000, np.exp(-20)]], rtol=1e-5)
    smoothed = [[100, 1900, 51]]  # .05 of each logit that is right, .95 of each that is wrong
    np.testing.assert_allclose(sigmoid_losses(logits, labels, 0.1), smoothed, rtol=1e-5)
    focal = focal_losses(logits, labels, 0.25, 0.5)
    np.testing.assert_allclose(focal, [[0, 1000, 0.75 * np.exp(-30)]], rtol=1e-5)
    np.testing.assert_allclose(log_softmax_losses(logits, labels - 1 + (labels == 0), 0.1)[0, 0], 100, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", [log_softmax_losses, sigmoid_losses, focal_losses])
def test_class_gradients_equal_finite_differences(kind, smoothing):
    options = {"alpha": 0.25, "gamma": 1.5} if kind is focal_losses else {}
    labels = np.int32([[0, 1, 2, 0, 2, 1]])
    logits = random_logits((1, 6, 3), 10).astype(np.float64)

    def losses(values):
        return kind(values, labels, smoothing=smoothing, **options)

    values = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(losses(values))
    step, expected = 1e-5, np.zeros_like(logits)
    for k in range(3):
        shift = step * np.eye(3)[k]
        ends = [np.asarray(losses(tf.constant(moved))) for moved in (logits + shift, logits - shift)]
        expected[..., k] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(tape.gradient(total, values), expected, rtol=1e-6, atol=1e-8)


def iou_batch():
    """Two images with the anchors ANCHORS, the second without matches, and what each loss is."""
    targets, predicted = np.zeros((2, 3, 5), np.float32), np.zeros((2, 3, 4), np.float32)
    targets[0, :2, 4] = 1
    predicted[0, 0] = [5, 0, 0, 0]  # half a height lower: areas 1/2 of 3/2 shared, which fill the box around both
    targets[0, 1, 2] = LN2 / 0.2  # twice as high, with the same centre
    targets[0, 2, :4], predicted[0, 2] = 3, -50  # not matched
    predicted[1] = [1e18, -1e18, 1e18, -1e18]
    aspect = 4 / np.pi**2 * (np.pi / 4 - np.arctan(0.5)) ** 2
    distance = 0.2**2 / (0.6**2 + 0.4**2)
    sums = {"giou": 2 / 3 + 1 / 2, "diou": 2 / 3 + distance + 1 / 2}
    sums["ciou"] = sums["diou"] + aspect**2 / (0.5 + aspect)
    return targets, predicted, sums


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_losses_on_the_overlap_by_hand(kind):
    targets, predicted, sums = iou_batch()
    np.testing.assert_allclose(BoxLoss(1.0, kind, ANCHORS).call(targets, predicted), [sums[kind], 0], rtol=1e-5)
    doubled = BoxLoss(2.0, kind, ANCHORS.tolist()).call(targets, predicted)
    np.testing.assert_allclose(doubled, [2 * sums[kind], 0], rtol=1e-5)


def box_gradient(loss, targets, predicted):
    predicted = tf.constant(predicted)
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        total = tf.reduce_sum(loss.call(targets, predicted))
    return np.asarray(tape.gradient(total, predicted))


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_anchors_without_match_have_no_gradient_on_the_overlap(kind):
    targets, predicted, _ = iou_batch()
    targets[:, 2, :4] = np.inf
    predicted[1, 0] = np.nan
    anchors = ANCHORS.copy()
    anchors[2] = 0  # even one without extent, which does not overlap itself
    loss = BoxLoss(1.0, kind, anchors)
    assert np.all(np.isfinite(loss.call(targets, predicted)))
    assert float(loss.call(targets, predicted)[1]) == 0.0
    gradient = box_gradient(loss, targets, predicted)
    assert np.all(np.isfinite(gradient))
    assert np.array_equal((gradient != 0).any(-1), targets[..., 4] > 0)


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_overlap_of_any_prediction_has_finite_gradients(kind):
    loss = BoxLoss(1.0, kind, ANCHORS[:1])
    boxes = np.float32([[0.3, -0.2, 0.5, 0.1, 1], [0, 0, 0, 0, 1], [0, 0, -80, 3, 1], [0, 0, 9, 9, 1]])
    numbers = [-1e18, -1e4, -20.0, 0.0, 20.0, 1e4, 1e18]
    grid = np.float32([[shift, 1, log_size, 2] for shift in numbers for log_size in numbers])
    targets, predicted = np.repeat(boxes, len(grid), axis=0)[:, None], np.tile(grid, (4, 1))[:, None]
    losses = loss.call(targets, predicted)
    assert np.all((losses > 0) & (losses <= 2.5))
    assert np.all(np.isfinite(box_gradient(loss, targets, predicted)))
    np.testing.assert_allclose(loss.call(boxes[:, None], boxes[:, None, :4]), np.zeros(4), atol=1e-6)
    assert np.all(np.isfinite(box_gradient(loss, boxes[:, None], boxes[:, None, :4])))


def random_pairs(num_pairs, seed):
    """(anchors, deltas of boxes about as large, some beside their anchor), float64."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.1, 0.4, (num_pairs, 2))
    middles = rng.uniform(0.2, 0.8, (num_pairs, 2))
    anchors = np.concatenate([middles - sizes / 2, middles + sizes / 2], axis=1)
    return anchors, rng.normal(0, 1, (num_pairs, 4)) * [8, 8, 2, 2]


@pytest.mark.parametrize("kind", IOU_KINDS)
def test_gradients_on_the_overlap_equal_finite_differences(kind):
    anchors, deltas = random_pairs(12, 20)
    predicted = np.random.default_rng(21).normal(0, 2, (12, 4))
    targets = np.float32(np.concatenate([deltas, np.ones((12, 1))], axis=1))[None]
    gradient = box_gradient(BoxLoss(1.0, kind, anchors), targets, np.float32(predicted[None]))[0]
    aspect_weights = []

    def overlaps(values, as_constant):
        boxes = coder.decode(values, anchors), coder.decode(deltas, anchors)
        if kind == "ciou":
            return ops.complete_iou(*boxes, as_constant=as_constant)
        return {"giou": ops.generalized_iou, "diou": ops.distance_iou}[kind](*boxes)

    overlaps(predicted, lambda weights: aspect_weights.append(weights) or weights)
    step, expected = 1e-6, np.zeros((12, 4))
    for k in range(4):
        shift = step * np.eye(4)[k]
        ends = [overlaps(moved, lambda _: aspect_weights[0]) for moved in (predicted - shift, predicted + shift)]
        expected[:, k] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["smooth_l1", *IOU_KINDS])
def test_descent_on_a_box_loss_lays_boxes_upon_each_other(kind):
    anchors, deltas = random_pairs(10, 22)
    targets = tf.constant(np.concatenate([deltas, np.ones((10, 1))], axis=1)[None], tf.float32)
    loss = BoxLoss(1.0, kind, anchors)
    predicted = tf.Variable(np.zeros((1, 10, 4), np.float32))
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.3, 300))
    optimizer.build([predicted])

    @tf.function
    def descend():
        for _ in tf.range(300):
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(loss.call(targets, predicted))
            optimizer.apply([tape.gradient(total, predicted)], [predicted])

    def overlaps():
        boxes = coder.decode(predicted.numpy()[0], anchors), coder.decode(deltas, anchors)
        return np.diag(ops.iou(*boxes))

    assert overlaps().min() == 0 and overlaps().max() < 0.9
    descend()
    assert overlaps().min() > 0.95


@pytest.mark.parametrize("kind", ["sigmoid", "focal"])
def test_compiled_losses_are_the_eager_ones(kind):
    labels = np.random.default_rng(23).choice([0, 0, 0, 1, 2, 3, -1], (2, 3)).astype(np.int32)
    targets, predicted, _ = iou_batch()
    losses = ClassLoss(kind=kind, label_smoothing=0.1), BoxLoss(1.0, "ciou", ANCHORS)
    values = (labels, random_logits((2, 3, 3), 24)), (targets, predicted)
    for loss, arguments in zip(losses, values, strict=True):
        compiled = tf.function(loss.call, jit_compile=True)
        np.testing.assert_allclose(compiled(*arguments), loss.call(*arguments), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ClassLoss(kind="hinge"), "loss.classification: 'hinge' is none of softmax, sigmoid, focal"),
        (lambda: BoxLoss(kind="iou", anchors=ANCHORS), "loss.box: 'iou' is none of smooth_l1, giou, diou, ciou"),
        (lambda: BoxLoss(kind="giou"), "loss.box=giou needs the anchors"),
    ],
)
def test_losses_refuse_what_they_are_not(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


def test_config_chooses_the_losses():
    made = make_losses(LossConfig(), ANCHORS)
    assert made["class_logits"].get_config() == ClassLoss().get_config()
    assert made["box_deltas"].get_config() == BoxLoss().get_config()  # the anchors are not kept
    settings = LossConfig("focal", 0.75, 1.5, 0.02, 0.1, "diou", 2.0, 4, 5.0, (3.0, 0.0))
    made = make_losses(settings, ANCHORS)
    assert made["class_logits"].get_config() == ClassLoss(2.0, 4, "focal", 0.1, 0.75, 1.5, (3.0, 0.0)).get_config()
    assert made["box_deltas"].get_config() == BoxLoss(5.0, "diou", ANCHORS).get_config()


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
