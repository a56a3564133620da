"""Large files are hashed once in each state that they are in, small ones always."""

import json
import os
from pathlib import Path

import pytest

from saukit.core import artifacts, stamps
from saukit.core.artifacts import read_manifest, write_manifest
from saukit.core.errors import CorruptArtifactError
from saukit.core.stamps import STAMPS_NAME


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed from now on; 100 bytes are large."""
    monkeypatch.setattr(stamps, "STAMPED_BYTES", 100)
    seen: list[str] = []
    compute = artifacts.sha256_file

    def counting(path: Path) -> str:
        seen.append(path.name)
        return compute(path)

    monkeypatch.setattr(artifacts, "sha256_file", counting)
    return seen


@pytest.fixture
def folder(tmp_path: Path, hashed: list[str]) -> Path:
    """A complete artefact of a large and a small file, hashed as it was written."""
    (tmp_path / "large.safetensors").write_bytes(b"x" * 101)
    (tmp_path / "small.safetensors").write_bytes(b"x" * 100)
    write_manifest(
        tmp_path, kind="split", files=["large.safetensors", "small.safetensors"], inputs={}, summary={}, device="cpu"
    )
    hashed.clear()
    return tmp_path


def test_a_large_file_is_not_hashed_again(folder: Path, hashed: list[str]) -> None:
    for _ in range(3):
        assert read_manifest(folder, kind="split") is not None
    assert hashed == ["small.safetensors"] * 3
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["large.safetensors", "small.safetensors"]


def test_without_its_stamp_it_is_hashed_once(folder: Path, hashed: list[str]) -> None:
    (folder / STAMPS_NAME).unlink()
    for _ in range(3):
        read_manifest(folder, kind="split")
    assert hashed.count("large.safetensors") == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "no", '{"large.safetensors": 3}', '{"large.safetensors": [101, 0, 0, "x"]}']
)
def test_a_stamp_that_does_not_fit_vouches_for_nothing(folder: Path, hashed: list[str], text: str) -> None:
    (folder / STAMPS_NAME).write_text(text)
    read_manifest(folder, kind="split")
    assert "large.safetensors" in hashed


def test_a_file_of_another_state_is_hashed(folder: Path, hashed: list[str]) -> None:
    path = folder / "large.safetensors"
    copy = folder / "copy"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    copy.replace(path)  # the same content and time, another inode
    read_manifest(folder, kind="split")
    assert hashed.count("large.safetensors") == 1
    os.utime(path, ns=(1, 1))
    read_manifest(folder, kind="split")
    assert hashed.count("large.safetensors") == 2


@pytest.mark.parametrize("content", [b"y" * 101, b"x" * 102])
def test_a_changed_file_is_found(folder: Path, content: bytes) -> None:
    path = folder / "large.safetensors"
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(CorruptArtifactError, match="large"):
        read_manifest(folder, kind="split")
    with pytest.raises(CorruptArtifactError, match="large"):
        read_manifest(folder, kind="split")


def test_where_no_stamp_can_be_written_files_are_hashed(folder: Path, hashed: list[str]) -> None:
    (folder / STAMPS_NAME).unlink()
    (folder / STAMPS_NAME).mkdir()
    for _ in range(2):
        assert read_manifest(folder, kind="split") is not None
    assert hashed.count("large.safetensors") == 2
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [STAMPS_NAME]


def test_small_artefacts_have_no_stamps(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 1000)
    write_manifest(tmp_path, kind="split", files=["a.safetensors"], inputs={}, summary={}, device="cpu")
    read_manifest(tmp_path, kind="split")
    assert not (tmp_path / STAMPS_NAME).exists()
