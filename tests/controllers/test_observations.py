"""What each part of an observation becomes, against its definition."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from mneme.controllers import Image, ObservationPart, OneHot, PolicySettings, Vector
from mneme.controllers.observations import ObservationEncoder

T, B = 3, 2


def encoder(parts: dict[str, ObservationPart], seed: int = 0, features: int = 16) -> ObservationEncoder:
    settings = PolicySettings(image_features=features)
    return ObservationEncoder(parts, settings, Generator().manual_seed(seed))


def picture(part: Image, seed: int = 0) -> Tensor:
    return torch.randint(256, (T, B, *part.shape), dtype=torch.uint8, generator=Generator().manual_seed(seed))


def test_vectors_stay_as_they_are_and_the_order_is_the_specifications() -> None:
    built = encoder({"b": Vector(2), "a": Vector(1)})
    a, b = torch.randn(T, B, 1), torch.randn(T, B, 2)
    first, second = built({"a": a, "b": b})
    assert torch.equal(first, b) and torch.equal(second, a)
    assert built.output_size == 3 and not built.state_dict()


def test_categories_become_one_flag_each() -> None:
    counts = (3, 1, 4)
    built = encoder({"x": OneHot(counts)})
    x = torch.stack([torch.randint(n, (T, B), generator=Generator().manual_seed(n)) for n in counts], -1)
    expected = torch.cat([nn.functional.one_hot(x[..., i], n) for i, n in enumerate(counts)], -1).float()
    (actual,) = built({"x": x})
    assert torch.equal(actual, expected) and actual.dtype == torch.float32
    assert built.output_size == 8 and not built.state_dict()


@pytest.mark.parametrize("shape", [(3, 3, 3), (7, 7, 3), (3, 35, 1), (36, 36, 1), (36, 50, 3), (84, 84, 4)], ids=str)
def test_images_of_any_size_become_the_chosen_number_of_features(shape: tuple[int, int, int]) -> None:
    part = Image(shape, channels_last=True, scale=1 / 255)
    built = encoder({"x": part})
    (y,) = built({"x": picture(part)})
    assert y.shape == (T, B, 16) and y.dtype == torch.float32 and built.output_size == 16
    assert y.isfinite().all() and (y >= 0).all() and y.any()
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


def test_pictures_are_read_by_the_layers_of_mnih_and_grids_by_smaller_ones() -> None:
    for size, kernels in ((36, [8, 4, 3]), (35, [3, 3, 3])):
        built = encoder({"x": Image((size, size, 3), channels_last=True, scale=1.0)})
        assert [m.kernel_size[0] for m in built.modules() if isinstance(m, nn.Conv2d)] == kernels


@pytest.mark.parametrize("height,width", [(7, 9), (40, 36)])
def test_the_order_of_the_axes_is_told_and_not_guessed(height: int, width: int) -> None:
    last, first = Image((height, width, 3), True, 1 / 255), Image((3, height, width), False, 1 / 255)
    x = picture(last)
    torch.testing.assert_close(encoder({"x": first})({"x": x.movedim(-1, 2)}), encoder({"x": last})({"x": x}))


def test_bytes_and_scaled_floats_give_the_same() -> None:
    x = picture(Image((7, 7, 3), True, 1 / 255))
    (of_bytes,) = encoder({"x": Image((7, 7, 3), True, 1 / 255)})({"x": x})
    (of_floats,) = encoder({"x": Image((7, 7, 3), True, 1.0)})({"x": x.float() / 255})
    torch.testing.assert_close(of_bytes, of_floats)


def test_every_step_and_lane_is_read_by_itself() -> None:
    part = Image((7, 7, 3), True, 1 / 255)
    built, x = encoder({"x": part}), picture(part)
    (whole,) = built({"x": x})
    for t in range(T):
        for b in range(B):
            torch.testing.assert_close(built({"x": x[t : t + 1, b : b + 1]})[0][0, 0], whole[t, b])


def test_the_seed_alone_decides_the_bits_and_the_filters_start_orthogonal() -> None:
    parts = {"x": Image((7, 7, 3), True, 1 / 255)}
    same, again, other = encoder(parts), encoder(parts), encoder(parts, seed=1)
    for a, b, c in zip(same.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() < 2 or not torch.equal(a, c)
    for layer in same.modules():
        if isinstance(layer, nn.Conv2d):
            w = layer.weight.flatten(1) / math.sqrt(2)
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
            assert layer.bias is not None and not layer.bias.any()


def test_impossible_parts_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="size of a vector observation is 0; it must be at least 1"):
        Vector(0)
    for counts in ((), (3, 0)):
        with pytest.raises(ValueError, match="counts of a categorical observation are .*; each must be at least 1"):
            OneHot(counts)
    with pytest.raises(ValueError, match=r"shape of an image observation is \(0, 7, 3\); it must be three sizes"):
        Image((0, 7, 3), True, 1.0)
    with pytest.raises(ValueError, match="scale of an image observation is 0.0; it must be a number above 0"):
        Image((7, 7, 3), True, 0.0)
    with pytest.raises(ValueError, match="policy.image_features is 0; it must be at least 1"):
        PolicySettings(image_features=0)
