"""The maps of images: known ones by hand, any one against torchvision, and what makes a run repeatable."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from jointvae import augmentation
from jointvae.augmentation import Affine
from jointvae.errors import JointVAEError

NOTHING = {"degrees": 0.0, "shear": 0.0, "scale": 0.0, "shift": 0.0}


@pytest.fixture
def x(digits):
    return digits.images[:16] / 255


def largest(x):
    """The draw that asks for the largest of everything."""
    return torch.ones(6, len(x))


def test_no_map_leaves_images_as_they_are(x):
    torch.testing.assert_close(Affine(**NOTHING)(x, largest(x)), x)


def test_a_quarter_turn(x):
    turned = Affine(**NOTHING | {"degrees": 90.0})(x, largest(x))
    torch.testing.assert_close(turned, x.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_a_shift_by_two_pixels(x):
    shifted = Affine(**NOTHING | {"shift": 2 * 2 / 32})(x, largest(x))
    by_hand = torch.nn.functional.pad(x, (0, 2, 0, 2))[..., 2:, 2:]
    torch.testing.assert_close(shifted, by_hand, atol=1e-4, rtol=0)


def test_a_half_size_image_is_seen_twice_as_far(x):
    """Half the scale looks at every other place: the middle of the image, twice as large."""
    near = Affine(**NOTHING | {"scale": 0.5})(x, -largest(x))
    larger = v2.functional.affine(x, 0.0, [0, 0], 2.0, [0.0], interpolation=v2.InterpolationMode.BILINEAR)
    torch.testing.assert_close(near, larger, atol=1e-4, rtol=0)


@pytest.mark.parametrize("degrees", [-30.0, -7.0, 10.0, 45.0])
def test_turns_are_those_of_torchvision(x, degrees):
    ours = Affine(**NOTHING | {"degrees": abs(degrees)})(x, math.copysign(1.0, degrees) * largest(x))
    theirs = v2.functional.rotate(x, degrees, interpolation=v2.InterpolationMode.BILINEAR)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_shear_moves_rows_against_each_other(x):
    """Each row is shifted in proportion to its height above the middle, and nothing is moved up or down."""
    sheared = Affine(**NOTHING | {"shear": 0.25})(x, largest(x))
    height = (torch.arange(32) + 0.5) / 16 - 1
    for row in (3, 14, 28):
        shift = torch.zeros(6, len(x))
        shift[4] = 0.25 * height[row]
        by_hand = Affine(**NOTHING | {"shift": 1.0})(x, shift)
        torch.testing.assert_close(sheared[:, :, row], by_hand[:, :, row], atol=1e-4, rtol=0)


def test_the_usual_maps_stay_light(x):
    """They keep the ink within a third, and pixels in [0, 1]."""
    found = Affine()(x, augmentation.draw(0, 1, len(x)))
    assert found.min() >= 0
    assert found.max() <= 1
    ink = found.sum((1, 2, 3)) / x.sum((1, 2, 3))
    assert (ink - 1).abs().max() < 1 / 3


def test_every_image_has_a_map_of_its_own(x):
    uniform = augmentation.draw(0, 1, len(x))
    whole = Affine()(x, uniform)
    for i in (0, 7):
        torch.testing.assert_close(whole[i : i + 1], Affine()(x[i : i + 1], uniform[:, i : i + 1]))
    assert not torch.equal(*Affine()(x[:1].repeat(2, 1, 1, 1), uniform[:, :2]))


@given(seed=st.integers(0, 2**31 - 1), step=st.integers(1, 10**6), batch=st.integers(1, 70))
def test_a_draw_is_a_function_of_seed_and_step(seed, step, batch):
    found = augmentation.draw(seed, step, batch)
    assert found.shape == (6, batch)
    assert found.abs().max() <= 1
    assert torch.equal(found, augmentation.draw(seed, step, batch))
    for other in ((seed, step + 1), ((seed + 1) % 2**31, step)):
        assert not torch.equal(found, augmentation.draw(*other, batch))


def test_draws_are_uniform():
    drawn = torch.cat([augmentation.draw(3, step, 64).flatten() for step in range(1, 101)])
    assert abs(drawn.mean()) < 4 / math.sqrt(3 * len(drawn))
    assert abs(drawn.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / len(drawn))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"degrees": -1.0}, "largest degrees of a map must be a number from zero, not -1.0"),
        ({"shear": math.nan}, "largest shear"),
        ({"shift": math.inf}, "largest shift"),
        ({"scale": 1.0}, "largest change of scale must be below 1"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(change, words):
    with pytest.raises(JointVAEError, match=words):
        Affine(**change)
