"""Projector, predictor and classifier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_objectives import make

from occinv.models.heads import BatchNorm, ClassifierHead, MlpHead

RNG = np.random.default_rng(0)


def test_batch_norm_normalizes_over_all_axes_but_the_last() -> None:
    x = RNG.normal(3, 2, (4, 5, 6)).astype(np.float32)
    params = {"scale": np.arange(6, dtype=np.float32), "bias": np.full(6, 0.5, np.float32)}
    found = BatchNorm().apply({"params": params}, x)
    rows = x.reshape(-1, 6).astype(float)
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * np.arange(6) + 0.5
    np.testing.assert_allclose(found, expected.reshape(4, 5, 6), rtol=1e-4, atol=1e-5)


def test_batch_norm_keeps_the_type_of_its_input_and_float32_statistics() -> None:
    x = jnp.asarray(RNG.normal(100, 1, (64, 3)), jnp.bfloat16)
    found = BatchNorm().apply({"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}, x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32).mean(0), 0, atol=0.02)


@pytest.mark.parametrize("norm", ["none", "batchnorm", "layernorm"])
def test_mlp_head(norm: str) -> None:
    head, x = MlpHead(hidden=6, out=4, norm=norm), RNG.normal(size=(3, 2, 5)).astype(np.float32)
    params = head.init(jax.random.key(0), x)["params"]
    assert ("norm" in params) == (norm != "none")
    found = head.apply({"params": params}, x)
    assert found.shape == (3, 2, 4) and found.dtype == jnp.float32
    hidden = x @ params["in"]["kernel"]
    if norm == "layernorm":
        hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(
            hidden.var(-1, keepdims=True) + 1e-6
        )
    elif norm == "batchnorm":
        hidden = (hidden - hidden.mean((0, 1))) / np.sqrt(hidden.var((0, 1)) + 1e-5)
    hidden = 0.5 * hidden * (1 + jax.scipy.special.erf(hidden / np.float32(np.sqrt(2))))
    np.testing.assert_allclose(found, hidden @ params["out"]["kernel"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_classifier_pooling(pooling: str) -> None:
    head = ClassifierHead(num_classes=3, pooling=pooling)
    tokens = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    params = jax.tree.map(np.asarray, head.init(jax.random.key(0), tokens)["params"])
    assert np.abs(params["linear"]["kernel"]).max() < 1e-4  # its first logits are near 0
    params["linear"]["kernel"] = RNG.normal(size=(4, 3)).astype(np.float32)
    found = head.apply({"params": params}, tokens)
    pooled = tokens[:, 0]
    if pooling == "mean":
        mean = tokens[:, 1:].mean(1)
        pooled = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found, pooled @ params["linear"]["kernel"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_the_logits_of_the_classifier_are_float32_under_bfloat16(pooling: str) -> None:
    """In bfloat16, logits of different classes are often equal."""
    head = ClassifierHead(num_classes=50, pooling=pooling, dtype=jnp.bfloat16)
    tokens = jnp.asarray(RNG.normal(size=(8, 5, 16)), jnp.bfloat16)
    params = head.init(jax.random.key(0), tokens)["params"]
    kernel = RNG.normal(1, 1e-3, (16, 50)).astype(np.float32)
    params = {**params, "linear": {"kernel": kernel, "bias": np.zeros(50, np.float32)}}
    found = head.apply({"params": params}, tokens)
    assert found.dtype == jnp.float32
    rounded = np.asarray(found.astype(jnp.bfloat16), np.float32)
    assert (rounded != np.asarray(found)).mean() > 0.9
    assert all(len(set(row)) > 45 for row in np.asarray(found).tolist())
    if pooling == "class":
        np.testing.assert_allclose(
            found, np.asarray(tokens[:, 0], np.float32) @ kernel, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ["classification", "linear_probe"])
def test_objectives_with_labels_have_float32_logits_under_bfloat16(name: str) -> None:
    objective = make(name, depth=1, num_classes=50)
    setting = dataclasses.replace(
        objective.setting,
        dtype=jnp.bfloat16,
        encoder=objective.setting.encoder.clone(dtype=jnp.bfloat16),
    )
    networks = dataclasses.replace(objective, setting=setting).networks
    head = networks.head
    shape = (2, 5, 16) if name == "classification" else (2, 16)
    x = jnp.asarray(RNG.normal(size=shape), jnp.bfloat16).astype(jnp.float32)
    params = head.init(jax.random.key(0), x)["params"]
    logits = jax.tree.leaves(head.apply({"params": params}, x))
    for each in logits:
        assert each.dtype == jnp.float32
        assert (np.asarray(each.astype(jnp.bfloat16), np.float32) != np.asarray(each)).any()
