"""Views by several threads are those by one, and leave torch's number of threads as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from saukit.training import autoaugment, crops
from saukit.training import photos as room
from saukit.training import views as module
from saukit.training.distributed import Share
from saukit.training.photo_operations import autoaugmented
from saukit.training.photos import compiled, cropped, simclr
from saukit.training.views import PhotoViews, Views

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def photos(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 72, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def made(views: Views, name: str, images: torch.Tensor, threads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A view, and what the generator draws after it."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    view = getattr(views, name)(images, generator)
    return view, torch.rand(4, generator=generator)


@pytest.mark.parametrize("kind", [Views, PhotoViews])
@pytest.mark.parametrize("name", ["crop_flip", "autoaugment", "simclr"])
@pytest.mark.parametrize(("count", "threads"), [(7, 2), (5, 3), (2, 4)])
def test_views_by_threads_are_those_by_one(kind: type[Views], name: str, count: int, threads: int) -> None:
    views, images = kind(MEAN, STD, flip=True), photos(count)
    expected, after = made(views, name, images, 1)
    found, then = made(views, name, images, threads)
    assert torch.equal(found, expected)
    assert torch.equal(then, after) and torch.get_num_threads() == threads
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_only_several_photos_are_divided_also_of_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    divided: list[int] = []
    real = room._pool
    monkeypatch.setattr(room, "_pool", lambda count: divided.append(count) or real(count))  # type: ignore[func-returns-value]
    views = Views(MEAN, STD, flip=True)
    small = torch.zeros((6, 3, 32, 32), dtype=torch.uint8)
    for images, threads in ((small, 2), (photos(6), 1), (photos(1), 2)):
        made(views, "simclr", images, threads)
    assert divided == []
    whole, _ = made(views, "simclr", photos(6), 2)
    part, _ = made(Views(MEAN, STD, flip=True, share=Share(6, 1, 2)), "simclr", photos(6)[3:], 2)
    assert divided == [2, 2] and torch.equal(part, whole[3:])


@pytest.mark.parametrize("name", ["crop_flip", "autoaugment", "simclr"])
@pytest.mark.parametrize(("flip", "scale"), [(True, None), (False, None), (True, 0.3)])
def test_compiled_views_are_those_of_the_plain_functions_bit_for_bit(
    name: str, flip: bool, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    views, images = Views(MEAN, STD, flip=flip, crop_scale=scale), photos(12)
    expected, _ = made(views, name, images, 1)
    assert all(isinstance(compiled(each), torch.jit.ScriptFunction) for each in (cropped, autoaugmented, simclr))
    monkeypatch.setattr(module, "compiled", lambda function: function)
    assert torch.equal(made(views, name, images, 1)[0], expected)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Views, "crop_flip"), (Views, "autoaugment"), (Views, "simclr"), (PhotoViews, "autoaugment")],
)
def test_photos_one_by_one_are_as_a_batch(kind: type[Views], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does it matter how their pixels lie in memory."""
    views, images = kind(MEAN, STD, flip=True), photos(12)
    found, _ = made(views, name, images, 1)
    other, _ = made(views, name, images.contiguous(memory_format=torch.channels_last), 1)
    torch.testing.assert_close(other, found, rtol=0, atol=1e-6)
    for file in (room, module, crops, autoaugment):
        monkeypatch.setattr(file, "are_photos", lambda images: False)
    torch.testing.assert_close(found, made(views, name, images, 1)[0], rtol=0, atol=1e-5)


def test_what_cannot_be_compiled_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(function: object) -> None:
        raise RuntimeError("not in this torch")

    monkeypatch.setattr(torch.jit, "script", gone)
    assert compiled.__wrapped__(simclr) is simclr


def test_threads_of_the_pool_have_one_thread_each_and_errors_reach_the_caller() -> None:
    torch.set_num_threads(3)
    pool = room._pool(3)
    assert torch.get_num_threads() == 3
    assert set(pool.map(lambda _: torch.get_num_threads(), range(12))) == {1}
    with pytest.raises(ValueError, match=r"images must be uint8 \[b, 3, H, W\]"):
        Views(MEAN, STD, flip=True).simclr(photos(6).float(), torch.Generator())
