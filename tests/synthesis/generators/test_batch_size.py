import pytest
import torch

from saukit.synthesis.sampling import find_batch_size


@pytest.mark.parametrize(
    ("fits", "saturates", "expected"),
    [(10_000, 64, 64), (100, 10_000, 64), (5, 10_000, 4), (1, 1, 1), (10_000, 10_000, 1024), (8, 2, 8)],
)
def test_the_batch_grows_while_it_pays_and_fits(fits: int, saturates: int, expected: int) -> None:
    """A device that draws `saturates` images in the time of one, and holds `fits`."""

    def seconds(count: int) -> float:
        if count > fits:
            raise torch.OutOfMemoryError
        return max(1.0, count / saturates)

    assert find_batch_size(seconds) == expected


def test_a_device_that_holds_not_one_image_says_so() -> None:
    def seconds(count: int) -> float:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError, match="not even one image at a time"):
        find_batch_size(seconds)
