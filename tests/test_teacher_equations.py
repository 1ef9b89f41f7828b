"""The losses of objectives that regress an EMA teacher's features, against loops in float64.

The loops get what the papers take as given, features of the encoders and the views that were drawn.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from test_equations import COUNT, IMAGES, make, run, start

from occinv.schema import UserError
from occinv.transform.view import whole

MOMENTUM = 0.6


def standard(x: np.ndarray) -> np.ndarray:
    """Layer norm of one vector without parameters, with PyTorch's epsilon."""
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)


def smooth_l1(first: np.ndarray, second: np.ndarray, beta: float) -> float:
    """The mean over the values of two vectors."""
    terms = []
    for d in np.abs(first - second):
        terms.append(d * d / (2 * beta) if d < beta else d - beta / 2)
    return sum(terms) / len(terms)


def check_teacher(found: dict[str, Any]) -> None:
    """The EMA moved by one step towards f."""
    before, after = found["before"]["target"]["encoder"], found["state"]["target"]["encoder"]

    def check(old: np.ndarray, online: np.ndarray, new: np.ndarray) -> None:
        expected = MOMENTUM * old.astype(float) + (1 - MOMENTUM) * online
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)

    jax.tree.map(check, before, found["params"]["encoder"], after)


def test_data2vec() -> None:
    beta, last = 0.8, 2
    objective = make(
        "data2vec",
        depth=3,
        mask_ratio=0.375,
        smallest_block=2,
        target_blocks=last,
        beta=beta,
        momentum=MOMENTUM,
        colour=None,
    )

    def rest(params: Any, state: Any, views: Any) -> Any:
        blocks = objective.encode(state["target"], views[1]).blocks
        return objective.encode(params, views[0]).tokens, blocks

    found = run(objective, rest)
    check_teacher(found)
    visible, second = found["visible"]
    assert (visible.sum(1) == 10).all() and second.all()
    tokens, blocks = (z.astype(float) for z in found["rest"])
    q = {name: value.astype(float) for name, value in found["params"]["predictor"].items()}
    for b in range(IMAGES):
        terms, cosines, predictions = [], [], []
        for n in range(COUNT):
            if not visible[b, n]:
                layers = [standard(blocks[k, b, 1 + n]) for k in range(3 - last, 3)]
                truth = standard(sum(layers) / last)
                predicted = tokens[b, 1 + n] @ q["kernel"] + q["bias"]
                terms.append(smooth_l1(predicted, truth, beta))
                lengths = np.linalg.norm(predicted) * np.linalg.norm(truth)
                cosines.append(predicted @ truth / lengths)
                predictions.append(predicted)
        assert found["loss"][b] == pytest.approx(np.mean(terms), rel=1e-4)
        metrics = found["metrics"]
        assert metrics["similarity"][b] == pytest.approx(np.mean(cosines), rel=1e-3, abs=1e-4)
        assert metrics["spread"][b] == pytest.approx(np.std(predictions, 0).mean(), rel=1e-4)


def test_no_gradient_flows_through_data2vecs_teacher() -> None:
    objective: Any = make("data2vec", smallest_block=2, target_blocks=1)
    params, state = start(objective)
    pixels = np.random.default_rng(0).random((2, 16, 16, 3)).astype(np.float32)

    def total(params: Any, state: Any) -> jax.Array:
        z2 = objective.target(params, state, whole(pixels, COUNT), None, None)
        return (z2 * pixels.mean()).sum() + (z2**3).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(params, state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("target_blocks", 2, "objective.target_blocks=2, expected 1 to 1, the blocks of the enc"),
        ("target_blocks", 0, "objective.target_blocks=0, expected 1 to 1, the blocks of the enc"),
        ("beta", 0.0, "objective.beta=0.0, expected a positive number"),
        ("mask_ratio", 1.0, "mask ratio 1.0, expected a number strictly between 0 and 1"),
    ],
)
def test_what_data2vec_cannot_be(field: str, value: float, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        make("data2vec", **{"target_blocks": 1, field: value})
    assert complaint in str(error.value)
