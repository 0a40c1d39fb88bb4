"""Augmentation against a slow reference, normalisation against its formula, and the order of an epoch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from homojl.data.augment import augment, epoch_order, iterate_batches, normalise
from homojl.errors import ConfigError

from .formats import random_images


def images_of(*shape: int) -> torch.Tensor:
    return torch.from_numpy(random_images(sum(shape), *shape))


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_outcomes(image: torch.Tensor, pad: int, flip: bool) -> dict[tuple[int, int, bool], torch.Tensor]:
    """(top, left, flipped) -> a window at (top, left) of the padded image, then the flip, pixel by pixel."""
    _, height, width = image.shape
    outcomes = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            for flipped in (False, True) if flip else (False,):
                result = torch.zeros_like(image)
                for row in range(height):
                    for column in range(width):
                        source_row = top + row - pad
                        source_column = left + (width - 1 - column if flipped else column) - pad
                        if 0 <= source_row < height and 0 <= source_column < width:
                            result[:, row, column] = image[:, source_row, source_column]
                outcomes[top, left, flipped] = result
    return outcomes


@pytest.mark.parametrize(("pad", "flip"), [(0, True), (1, False), (1, True), (2, True), (5, False)])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 3)])
def test_each_image_is_one_of_its_outcomes_and_all_of_them_occur(pad, flip, shape):
    """Every image has all its pixels different, so that what was done to it is known."""
    n = 40 * (2 * pad + 1) ** 2 * (2 if flip else 1)
    single = torch.arange(1, 1 + shape[0] * shape[1] * shape[2], dtype=torch.uint8).reshape(shape)
    outcomes = {tuple(result.flatten().tolist()): key for key, result in all_outcomes(single, pad, flip).items()}
    results = augment(single.expand(n, *shape), pad=pad, flip=flip, generator=generator_of(0))
    seen = {outcomes[tuple(result.flatten().tolist())] for result in results}  # KeyError: not an outcome
    assert seen == set(outcomes.values())


def test_images_of_a_batch_are_augmented_on_their_own():
    images = images_of(64, 3, 6, 7)
    results = augment(images, pad=2, flip=True, generator=generator_of(1))
    choices = set()
    for image, result in zip(images, results, strict=True):
        matches = [key for key, outcome in all_outcomes(image, 2, True).items() if torch.equal(outcome, result)]
        assert len(matches) == 1
        choices.add(matches[0])
    assert len(choices) > 25  # of 50, in 64 draws
    for part in range(3):  # no two of the three choices go together
        assert len({(choice[part], choice[(part + 1) % 3]) for choice in choices}) > 5


def test_augment_is_decided_by_its_generator_alone():
    images = images_of(16, 3, 8, 8)
    first = augment(images, pad=2, flip=True, generator=generator_of(5))
    torch.manual_seed(0)
    generator = generator_of(5)
    assert torch.equal(augment(images, pad=2, flip=True, generator=generator), first)
    assert not torch.equal(augment(images, pad=2, flip=True, generator=generator), first)
    state = torch.get_rng_state()
    augment(images, pad=2, flip=True, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)


def test_augment_keeps_type_shape_device_and_its_input():
    images = images_of(9, 3, 5, 6)
    before = images.clone()
    result = augment(images, pad=3, flip=True, generator=generator_of(0))
    assert (result.dtype, result.shape, result.device) == (images.dtype, images.shape, images.device)
    assert torch.equal(images, before)
    assert result.data_ptr() != images.data_ptr()


@pytest.mark.needs("cuda")
def test_augment_on_the_gpu_does_the_same_with_a_generator_on_the_cpu():
    images = images_of(32, 3, 8, 8)
    on_cpu = augment(images, pad=2, flip=True, generator=generator_of(3))
    on_gpu = augment(images.cuda(), pad=2, flip=True, generator=generator_of(3))
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("generator", [None, generator_of(0)])
def test_nothing_to_do(generator):
    images = images_of(4, 1, 5, 5)
    assert torch.equal(augment(images, pad=0, flip=False, generator=generator), images)


@pytest.mark.parametrize(
    ("images", "pad", "generator", "message"),
    [
        (torch.zeros(2, 1, 4, 4), 1, generator_of(0), "uint8"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 1, generator_of(0), r"\(1, 4, 4\)"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), -1, generator_of(0), "-1"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), 1, None, "Generator"),
    ],
)
def test_augment_refuses(images, pad, generator, message):
    with pytest.raises(ConfigError, match=message):
        augment(images, pad=pad, flip=False, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalise_is_its_formula(dtype, memory_format):
    images = images_of(5, 3, 6, 7)
    before = images.clone()
    mean, std = torch.tensor([0.1, 0.5, 0.4]), torch.tensor([0.2, 0.25, 0.3])
    result = normalise(images, mean, std, dtype=dtype, memory_format=memory_format)
    expected = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=memory_format)
    # In float32 the difference of two numbers below 1 is off by half an ulp of each; std amplifies it.
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
    assert torch.equal(images, before)


def test_normalise_exactly():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    result = normalise(images, torch.tensor([0.0]), torch.tensor([0.5]))
    assert result.flatten().tolist() == [0.0, torch.tensor(0.4).item(), 2.0]


@pytest.mark.parametrize("name", ["mean", "std"])
def test_normalise_refuses_a_wrong_number_of_channels(name):
    statistics = {"mean": torch.zeros(3), "std": torch.ones(3)} | {name: torch.ones(1)}
    with pytest.raises(ConfigError, match=rf"{name} has shape \(1,\)"):
        normalise(images_of(2, 3, 4, 4), **statistics)


@given(n=st.integers(0, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 2**20))
def test_epoch_order_is_a_permutation_that_its_arguments_decide(n, seed, epoch):
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))
    torch.manual_seed(n)
    assert torch.equal(epoch_order(n, seed=seed, epoch=epoch), order)


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(20, seed=seed, epoch=epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@settings(deadline=None)
@given(n=st.integers(0, 60), batch_size=st.integers(1, 70), first=st.integers(0, 8), drop_last=st.booleans())
def test_batches_are_the_order_in_pieces(n, batch_size, first, drop_last):
    order = epoch_order(n, seed=1, epoch=2)
    batches = list(iterate_batches(n, batch_size, seed=1, epoch=2, drop_last=drop_last))
    kept = n // batch_size * batch_size if drop_last else n
    assert torch.equal(torch.cat([order[:0], *batches]), order[:kept])
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(0 < len(batch) <= batch_size for batch in batches)
    resumed = list(iterate_batches(n, batch_size, seed=1, epoch=2, first_batch=first, drop_last=drop_last))
    assert [batch.tolist() for batch in resumed] == [batch.tolist() for batch in batches[first:]]


@pytest.mark.parametrize("change", [{"n": -1}, {"batch_size": 0}, {"seed": -1}, {"epoch": -1}, {"first_batch": -1}])
def test_batches_refuse(change):
    arguments = {"n": 5, "batch_size": 2, "seed": 0, "epoch": 0} | change
    with pytest.raises(ConfigError, match=r"-1|, 0"):
        next(iterate_batches(**arguments))
