"""The autoencoder: PCA is its linear case, the bound's terms by hand, and what each variant must not depend on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from neurofleet import counter
from neurofleet import experiment as experiments
from neurofleet.errors import ConfigError
from neurofleet.families._layers import fingerprints
from neurofleet.families.autoencoder import NUM_DRAWS, Autoencoder
from neurofleet.spec import DataSpec
from neurofleet.steps import Context

MakeSpec = Callable[..., DataSpec]
MakeContext = Callable[..., Context]
STILL = {"degrees": 0.0, "scale": 0.0, "translation": 0.0}
VARIANTS = ("plain", "denoising", "sparse", "variational")
IMAGE = {"input_mean": (40.0, 90.0), "input_std": (60.0, 30.0)}


def make(spec: DataSpec, **settings: Any) -> Autoencoder:
    chosen: dict[str, Any] = {
        "variant": "plain",
        "architecture": "dense",
        "hidden": [6],
        "channels": [3, 4],
        "code": 2,
        "activation": "gelu",
        "reconstruction": "mse",
        "squash_pixels": True,
        "noise": 0.3,
        "sparsity": 0.1,
        "kl_weight": 1.0,
        "augmentation": STILL,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(spec=spec, **chosen | settings).double()


def image_spec(make_spec: MakeSpec, shape: tuple[int, ...] = (2, 9, 8)) -> DataSpec:
    return make_spec(shape=shape, input_mean=IMAGE["input_mean"][: shape[0]], input_std=IMAGE["input_std"][: shape[0]])


def images(spec: DataSpec, num_rows: int) -> Tensor:
    """Standardised inputs of random pixels."""
    pixels = torch.randint(0, 256, (num_rows, *spec.shape), generator=torch.Generator().manual_seed(1)).double()
    mean, std = (torch.tensor(one).double().view(-1, 1, 1) for one in (spec.input_mean, spec.input_std))
    return (pixels - mean) / std


def targets(num_rows: int) -> Tensor:
    return torch.zeros(num_rows, dtype=torch.int64)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def test_a_linear_one_reaches_the_error_of_pca() -> None:
    """Its optimum is the plane of the first principal components (Baldi and Hornik 1989)."""
    data = experiments.build_data(experiments.compose(["data=digits"]))
    rows = data.rows("train").inputs[:400].double()
    family = make(data.spec, hidden=[], code=8, squash_pixels=False)
    family.start((rows, targets(len(rows))))
    context = Context(0, 0, 0.0, torch.arange(len(rows), dtype=torch.int32), training=True, measure=False)
    optimizer = torch.optim.LBFGS(family.parameters(), max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = family.objective((rows, targets(len(rows))), context).loss
        error.backward()
        return error.detach()

    optimizer.step(loss)
    pixels = (family.raw(rows).flatten(1) / 16).numpy()  # these have 17 shades
    pca = PCA(8).fit(pixels)
    best = float(np.square(pixels - pca.inverse_transform(pca.transform(pixels))).mean())
    assert best * (1 - 1e-9) <= float(loss()) < best * 1.02
    assert best < 0.6 * float(pixels.var(axis=0).mean())


def test_forward_by_hand(make_spec: MakeSpec) -> None:
    spec = image_spec(make_spec)
    family, inputs = make(spec, hidden=[], squash_pixels=True), images(spec, 5)
    readout = family.decoder.readout
    assert isinstance(readout, nn.Linear)
    weights = [one.detach().numpy() for one in (*family.to_code.parameters(), *readout.parameters())]
    code = inputs.flatten(1).numpy() @ weights[0].T + weights[1]
    pixels = family.raw(inputs).flatten(1).numpy() / 255
    assert pixels.min() >= -1e-9
    assert pixels.max() <= 1 + 1e-9
    said = sigmoid(code @ weights[2].T + weights[3])
    outputs = family(inputs).detach().numpy()
    assert family.output_names == ("code_0", "code_1", "anomaly_score")
    np.testing.assert_allclose(outputs[:, :2], code, rtol=1e-10)
    np.testing.assert_allclose(outputs[:, 2], np.square(said - pixels).mean(axis=1), rtol=1e-10)
    again = family.raw(family.reconstruct(inputs)).detach().flatten(1).numpy()
    np.testing.assert_allclose(again, 255 * said, rtol=1e-9)


@pytest.mark.parametrize("reconstruction", ["bce", "mse"])
def test_the_bound_by_hand(reconstruction: str, make_spec: MakeSpec, make_context: MakeContext) -> None:
    """-log p(x | z) at the drawn code, and the divergence of N(mean, variance) from N(0, 1), in nats."""
    spec = image_spec(make_spec)
    family = make(spec, variant="variational", reconstruction=reconstruction, kl_weight=0.5)
    if family.log_spread is not None:
        nn.init.constant_(family.log_spread, -1.3)
    inputs, context = images(spec, 5), make_context(5, seed=3, step=8)
    code = family.encode(inputs)
    assert code.log_variance is not None
    mean, variance = code.mean.detach().numpy(), code.log_variance.detach().exp().numpy()
    draws = counter.normal(context.key(2), context.rows, (2,), torch.float64).numpy()
    pixels = family.raw(inputs).flatten(1).numpy() / 255

    def unlikelihood(z: np.ndarray) -> Any:
        said = sigmoid(family.decoder(torch.from_numpy(z)).detach().numpy())
        if reconstruction == "bce":
            return -(pixels * np.log(said) + (1 - pixels) * np.log(1 - said)).sum(axis=1)
        variance = math.exp(-1.3) ** 2
        return (0.5 * np.square(said - pixels) / variance + 0.5 * math.log(2 * math.pi * variance)).sum(axis=1)

    divergence = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(axis=1)
    objective = family.objective((inputs, targets(5)), context)
    likelihood = unlikelihood(mean + np.sqrt(variance) * draws)
    assert float(objective.loss.detach()) == pytest.approx((likelihood + 0.5 * divergence).mean(), rel=1e-9)
    np.testing.assert_allclose(objective.metrics["negative_elbo"].numpy(), likelihood + divergence, rtol=1e-9)
    np.testing.assert_allclose(objective.metrics["kl"].numpy(), divergence, rtol=1e-9)
    # Held-out rows: a mean over a few draws that each row brings with it.
    half = counter.normal(counter.fold(0, 2), fingerprints(inputs), (NUM_DRAWS // 2, 2), torch.float64)
    both = torch.cat([half, -half], dim=1).numpy()
    every = [unlikelihood(mean + np.sqrt(variance) * both[:, index]) for index in range(NUM_DRAWS)]
    scores = family(inputs)[:, -1].detach().numpy()
    np.testing.assert_allclose(scores, np.mean(every, axis=0) + divergence, rtol=1e-9)
    alone = torch.cat([family(row.unsqueeze(0)) for row in inputs]).detach().numpy()
    np.testing.assert_allclose(alone[:, -1], scores, rtol=1e-9)


def test_the_estimate_of_the_bound_is_near_that_of_many_draws(make_spec: MakeSpec) -> None:
    spec = image_spec(make_spec)
    family, inputs = make(spec, variant="variational", reconstruction="bce"), images(spec, 40)
    many = []
    for step in range(300):
        rows = torch.arange(40, dtype=torch.int32)
        context = Context(0, step, 0.0, rows, training=True, measure=False)
        many.append(float(family.objective((inputs, targets(40)), context).loss.detach()))
    held_out = float(family(inputs)[:, -1].detach().mean())
    assert held_out == pytest.approx(np.mean(many), abs=5 * np.std(many) / 2)
    assert len(fingerprints(inputs).unique()) == 40


def test_noise_is_added_to_pixels_and_clipped(make_spec: MakeSpec, make_context: MakeContext) -> None:
    spec = image_spec(make_spec)
    family, inputs, context = make(spec, variant="denoising", noise=0.5), images(spec, 6), make_context(6)
    draws = counter.normal(context.key(1), context.rows, spec.shape, torch.float64).numpy()
    expected = (family.raw(inputs).numpy() / 255 + 0.5 * draws).clip(0, 1)
    disturbed = family.disturb(inputs, context)
    np.testing.assert_allclose(family.raw(disturbed).numpy() / 255, expected, atol=1e-12)
    objective = family.objective((inputs, targets(6)), context)
    said = family.raw(family.reconstruct(disturbed)).detach().numpy() / 255
    wanted = np.square(said - family.raw(inputs).numpy() / 255).mean()
    assert float(objective.loss.detach()) == pytest.approx(wanted, rel=1e-9), "the undisturbed pixels are wanted"
    table = make(make_spec(), variant="denoising", noise=0.5)
    rows = torch.zeros(6, 4, dtype=torch.float64)
    noise = counter.normal(context.key(1), context.rows, (4,), torch.float64)
    torch.testing.assert_close(table.disturb(rows, context), 0.5 * noise)


def test_the_sparsity_of_a_row_by_hand(make_spec: MakeSpec, make_context: MakeContext) -> None:
    family = make(make_spec(), variant="sparse", code=9, sparsity=0.7)
    rows = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    code = family.encode(rows).mean.detach().numpy()
    assert code.min() == 0
    said = family.reconstruct(rows).detach().numpy()
    norms = np.abs(code).sum(axis=1) / np.sqrt(np.square(code).sum(axis=1)) / 3
    objective = family.objective((rows, targets(6)), make_context(6))
    expected = np.square(said - rows.numpy()).mean(axis=1) + 0.7 * norms
    assert float(objective.loss.detach()) == pytest.approx(expected.mean(), rel=1e-9)
    np.testing.assert_allclose(objective.metrics["active_units"].numpy(), (code > 0).mean(axis=1))
    with torch.no_grad():  # ten times the code and a tenth of the weights that read it gain nothing
        family.to_code.weight.mul_(10)
        family.to_code.bias.mul_(10)
        family.decoder.layers[0].weight.div_(10)  # type: ignore[union-attr, operator]
    again = family.objective((rows, targets(6)), make_context(6)).loss
    torch.testing.assert_close(again, objective.loss, rtol=1e-9, atol=0)


def test_nothing_is_wanted_after_the_end_of_a_sequence(make_spec: MakeSpec, make_context: MakeContext) -> None:
    spec = make_spec(shape=(5, 2))
    rows = torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows[0, 3:], rows[1, 1:] = torch.nan, torch.nan
    for variant in VARIANTS:
        family = make(spec, variant=variant)
        family.start((rows, targets(3)))
        objective = family.objective((rows, targets(3)), make_context(3))
        objective.loss.backward()
        gradients = [one.grad for one in family.parameters() if one.grad is not None]
        assert all(bool(torch.isfinite(one).all()) for one in (objective.loss, *gradients))
    family = make(spec)
    said, known = family.reconstruct(rows), ~rows.isnan()
    by_hand = torch.stack([(one[k] - row[k]).square().mean() for one, row, k in zip(said, rows, known, strict=True)])
    torch.testing.assert_close(family(rows)[:, -1], by_hand, rtol=1e-10, atol=0)


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_stacks_and_shares_a_batch(variant: str, architecture: str, make_spec: MakeSpec) -> None:
    spec, rows = image_spec(make_spec), torch.arange(6, dtype=torch.int32)
    families = [make(spec, variant=variant, architecture=architecture, noise=0.2) for _ in range(2)]
    nn.init.normal_(families[1].to_code.weight, std=0.1, generator=torch.Generator().manual_seed(4))
    inputs = images(spec, 6)

    def loss(family: Autoencoder, first: int, last: int, seed: Any) -> Tensor:
        context = Context(seed, 3, 0.0, rows[first:last], training=True, measure=False)
        return family.objective((inputs[first:last], targets(last - first)), context).loss

    alone = [loss(family, 0, 6, seed) for seed, family in enumerate(families)]
    parts = (loss(families[0], 0, 2, 0) * 2 + loss(families[0], 2, 6, 0) * 4) / 6
    torch.testing.assert_close(parts, alone[0], rtol=1e-10, atol=0)
    parameters, buffers = torch.func.stack_module_state(families)  # type: ignore[arg-type]
    parameters = {name: one.contiguous() for name, one in parameters.items()}
    skeleton = copy.deepcopy(families[0]).to("meta")

    def stacked(weights: Any, others: Any, seed: Tensor) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(skeleton, (weights | others)):
            return loss(skeleton, 0, 6, seed)

    losses = torch.func.vmap(stacked)(parameters, buffers, torch.arange(2, dtype=torch.int32))
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-10, atol=0)


def test_a_start_says_the_mean_and_learns_its_spread(make_spec: MakeSpec) -> None:
    spec = image_spec(make_spec)
    inputs = images(spec, 50)
    for settings in ({}, {"squash_pixels": False}, {"variant": "variational"}):
        family = make(spec, **settings)
        nn.init.zeros_(family.decoder.readout.weight)  # type: ignore[union-attr, arg-type]
        family.start((inputs, targets(50)))
        mean = family.raw(inputs).mean(dim=0)
        torch.testing.assert_close(family.raw(family.reconstruct(inputs))[7], mean, rtol=1e-9, atol=1e-9)
        if family.log_spread is not None:
            assert float(family.log_spread.detach().exp()) == pytest.approx(
                float(family.raw(inputs).std()) / 255, rel=1e-9
            )


def test_scores_and_exhibits(make_spec: MakeSpec) -> None:
    spec = make_spec("binary")
    family = make(spec, variant="denoising")
    family.recipe = experiments.build_recipe(
        experiments.compose(["family=autoencoder", "data=digits"]),
        num_steps=1,
        log_every_n_steps=1,
        gradient_clip_val=None,
    )
    assert family.score_names == ["loss", "mse", "denoising_mse", "anomaly_auroc"]
    rows = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    strange = torch.arange(8.0).view(8, 1) > 5
    rows = torch.where(strange, rows * 50, rows)
    logged: dict[str, Any] = {}
    family._log_scores = lambda stage, scores: logged.update({f"{stage}/{name}": one for name, one in scores.items()})  # type: ignore[method-assign, assignment]
    for part in (slice(0, 3), slice(3, 8)):
        family._evaluate((rows[part], strange[part].double()), "test")
    family._log_scores("test", family._scores_of("test"))
    assert set(logged) == {f"test/{name}" for name in family.score_names}
    assert float(logged["test/mse"]) == pytest.approx(float(family(rows)[:, -1].detach().mean()), rel=1e-9)
    assert float(logged["test/anomaly_auroc"]) == 1
    shown = family.exhibits((rows, strange.double()))
    assert set(shown) == {"reconstructions", "code_map"}
    assert set(shown["reconstructions"]) == {"inputs", "outputs", "seen"}
    torch.testing.assert_close(shown["code_map"]["codes"], family.encode(rows).mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "deep"}, r"family\.variant needs one of plain, denoising, sparse, variational, got 'deep'"),
        ({"architecture": "convolutional"}, r"architecture=convolutional needs images, got made, which is tabular"),
        ({"reconstruction": "bce"}, r"reconstruction=bce needs pixels .* set family\.reconstruction=mse"),
        ({"code": 0}, "family.code needs at least 1, got 0"),
        ({"channels": [0, 4]}, "family.channels needs at least 1, got 0, 4"),
        ({"noise": -1.0}, r"family\.noise needs a number >= 0, got -1\.0"),
        ({"augmentation": STILL | {"scale": 0.1}}, r"family\.augmentation needs images"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str, make_spec: MakeSpec) -> None:
    with pytest.raises(ConfigError, match=message):
        make(make_spec(), **settings)
