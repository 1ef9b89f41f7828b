"""C-MAE without its mask token, in each way to compare views that share no patch, against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_objectives import COUNT, IMAGES, KEPT, Found, make
from test_equations import TOLERANCE, check_contrast, contrast, head, run_contrastive
from test_teacher_equations import predict

ONE_TOKEN = {"mean": {"tokens": "mean"}, "class, BYOL": {"tokens": "class", "similarity": "byol"}}
IDENTITY = {
    "position": {"negatives": "position"},
    "image": {"negatives": "image"},
    "batch, one way": {"negatives": "batch", "symmetric": False},
    "batch, with the class token": {"negatives": "batch", "tokens": "patch+class"},
    "BYOL": {"similarity": "byol"},
}
QUERIES = {
    "position": {"negatives": "position"},
    "batch": {"negatives": "batch"},
    "BYOL": {"similarity": "byol", "symmetric": False},
}
Tokens = list[list[Any]]  # [B][T], None where a view has no token


@pytest.fixture(scope="module")
def one_token() -> dict[str, Found]:
    return run_contrastive(ONE_TOKEN, mask_token=False)


@pytest.fixture(scope="module")
def identity() -> dict[str, Found]:
    return run_contrastive(IDENTITY, mask_token=False, t2="identity")


@pytest.fixture(scope="module")
def queries() -> dict[str, Found]:
    return run_contrastive(QUERIES, mask_token=False, predictor="queries")


@pytest.mark.parametrize("choice", ONE_TOKEN)
def test_one_token_for_each_image(one_token: dict[str, Found], choice: str) -> None:
    found = one_token[choice]
    online, _ = found.given
    assert [z.shape[1] for z in online] == [1 + KEPT, 1 + COUNT - KEPT]
    check_contrast(found, ONE_TOKEN[choice])


def placed(found: Found, encoder: int, view: int, params: Any, tokens: str) -> Tokens:
    """Return p(z) of the tokens of a view at the places of all tokens."""
    everything = []
    for b in range(IMAGES):
        z = found.given[encoder][view][b].astype(float)
        places: list[Any] = [None] * COUNT
        for token, n in zip(z[1:], np.flatnonzero(found.visible[view][b]), strict=True):
            places[n] = head(token, params)
        first = [head(z[0], params)] if tokens == "patch+class" else []
        everything.append(first + places)
    return everything


def check(found: Found, fields: dict[str, Any], predicted: Any) -> None:
    """Compare with Eq. (9) in both directions; `predicted(view, z1)` is q."""
    tokens, target = fields.get("tokens", "patch"), found.state["target"]
    losses = []
    for i, j in ((0, 1), (1, 0))[: 1 + fields.get("symmetric", True)]:
        z1 = placed(found, 0, i, found.params["projector"], tokens)
        z2 = placed(found, 1, j, target["projector"], tokens)
        losses.append(contrast(predicted(i, z1), z2, fields))
    np.testing.assert_allclose(found.loss, np.mean(losses, 0), rtol=TOLERANCE)


@pytest.mark.parametrize("choice", IDENTITY)
def test_t2_is_the_identity(identity: dict[str, Found], choice: str) -> None:
    found = identity[choice]
    first, second = found.visible
    assert (first.sum(1) == KEPT).all() and second.all()

    def each(view: int, z1: Tokens) -> Tokens:
        q = found.params["predictor"]
        return [[None if z is None else head(np.array(z), q) for z in image] for image in z1]

    check(found, IDENTITY[choice], each)


@pytest.mark.parametrize("choice", QUERIES)
def test_the_predictor_fills_in_the_missing_tokens(queries: dict[str, Found], choice: str) -> None:
    found = queries[choice]
    np.testing.assert_array_equal(found.visible[0], ~found.visible[1])

    def missing(view: int, z1: Tokens) -> Tokens:
        everything = []
        for b, image in enumerate(z1):
            shown = np.flatnonzero(found.visible[view][b])
            removed = np.flatnonzero(~found.visible[view][b])
            context = np.array([image[n] for n in shown])
            places: list[Any] = [None] * COUNT
            values = predict(found.params["predictor"], context, shown, removed)
            for n, value in zip(removed, values, strict=True):
                places[n] = list(value)
            everything.append(places)
        return everything

    check(found, QUERIES[choice], missing)


def test_metrics_are_of_the_compared_tokens(identity: dict[str, Found]) -> None:
    """BYOL's distance is 2 - 2 · cosine of the same tokens."""
    found = identity["BYOL"]
    np.testing.assert_allclose(2 - 2 * found.metrics["similarity"], found.loss, rtol=1e-5)
    agreement = identity["image"].metrics["agreement"]
    assert ((agreement >= 0) & (agreement <= 1)).all()


def test_the_axes_name_t2() -> None:
    def t2(**fields: Any) -> str:
        return make("cmae", mask_token=False, color=None, **fields).axes.t2

    assert t2(t2="identity") == "identity"
    assert t2(predictor="queries") == t2(tokens="mean") == "the complement"
