"""The classifier and its layer-wise learning rates against models_vit.py and lr_decay.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.tree_util import DictKey
from official import (
    agrees,
    at,
    differentiated,
    group,
    layer_of,
    loss_and_features,
    objective_of,
    ours,
    path_of,
    pixels_of,
    with_views,
)

from occinv import schema
from occinv.train.optimizer import layer_scales
from occinv.train.update_rules import is_decayed
from occinv.transforms.view import whole


@pytest.fixture(scope="module")
def classifier(reference: Path) -> Any:
    return np.load(reference / "vit_classifier.npz")


def classify(file: Any, pooling: str, weights: Any, smoothing: float = 0.0) -> Any:
    """Return (loss, logits) and the gradient of the file's images and labels."""
    section = {"name": "classification", "pooling": pooling, "label_smoothing": smoothing}
    objective = objective_of(file, section, file["logits"].shape[1])
    view = whole(pixels_of(file["images"]), objective.setting.encoder.num_patches)
    objective, labels = with_views(objective, view), file["labels"]

    def loss(params: Any) -> Any:
        return loss_and_features(objective, params, {}, len(labels), labels)

    (value, (_, logits)), gradient = differentiated(loss, ours(weights))
    return (value, logits), gradient


def test_classifier_of_the_mean_token(classifier: Any) -> None:
    weights = group(classifier, "state")
    start = "loss_label_smoothing_"
    (name,) = (name for name in classifier.files if name.startswith(start))
    smoothing = float(name.removeprefix(start).replace("_", "."))
    (loss, logits), gradient = classify(classifier, "mean", weights, smoothing)
    agrees("Classifier: logits of the mean token", logits, classifier["logits"])
    agrees("Classifier: label-smoothed loss", loss, classifier[name], 1e-5)
    expected = group(classifier, "grad")
    expected.pop("pos_embed", None)  # trained there; here only if the config says so
    agrees("Classifier: every gradient", gradient, ours(expected))


def test_classifier_of_the_class_token(classifier: Any) -> None:
    (_, logits), _ = classify(classifier, "class", group(classifier, "cls_state"))
    agrees("Classifier: logits of the class token", logits, classifier["cls_logits"])


def test_layerwise_learning_rates_and_decay(classifier: Any) -> None:
    weights = group(classifier, "state")
    rates = json.loads(str(classifier["lr_scale"]))
    decays = json.loads(str(classifier["weight_decay"]))
    assert set(rates) == set(decays) == set(weights)
    config = schema.Optimizer(
        weight_decay=max(decays.values()),
        decay="kernels",
        layer_decay=float(classifier["layer_decay"]),
    )
    params = ours(weights)
    scales = jax.tree.map(
        lambda scale, value: np.broadcast_to(scale, np.shape(value)),
        layer_scales(params, config.layer_decay),
        params,
    )
    for name, value in weights.items():
        path, layer = path_of(name, value.ndim), layer_of(name)
        scale = at(scales, path) if layer is None else at(scales, path)[layer]
        agrees("Classifier: learning rate of each layer", scale.max(), np.array(rates[name]), 1e-6)
        assert scale.max() == scale.min()
        decay = config.weight_decay * is_decayed(tuple(map(DictKey, path)), config)
        assert decay == decays[name], name
