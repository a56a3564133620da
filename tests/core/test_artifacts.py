import errno
import hashlib
import importlib.util
import json
import os
import re
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import SafetensorError, safe_open
from support import resealed

from saukit.core import artifacts
from saukit.core.artifacts import (
    Manifest,
    added_files,
    check_disk_space,
    load_tensors,
    package_versions,
    read_manifest,
    read_sealed,
    save_tensors,
    save_with_images,
    write_json,
    write_manifest,
)
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault
from saukit.core.writing import atomic_path, recover_folder, remove_temporaries, sha256_file, staged_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_a_write_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_the_old_file_and_no_stray(tmp_path: Path, old: str | None, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(type(error)), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert names(tmp_path) == ([] if old is None else ["file.txt"])
    assert old is None or path.read_text() == old


def no_space(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})

    def half(self: Path, text: str, **options: Any) -> int:
        self.write_bytes(text[:3].encode())
        return no_space()  # type: ignore[return-value, func-returns-value]

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(Path, "write_text", half)
        elif step == "fsync":
            patch.setattr(os, "fsync", no_space)
        else:
            patch.setattr(Path, "replace", no_space)
        message = rf"^no space left to write {re.escape(str(path))}; free some space and run the command again$"
        with pytest.raises(EnvironmentFault, match=message) as caught:
            write_json(path, {"new": 2})
    assert caught.value.exit_code == 5
    assert json.loads(path.read_text()) == {"old": 1}
    assert names(tmp_path) == ["file.json"]


def test_a_full_disk_while_tensors_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.safetensors"
    save_tensors(path, {"old": np.zeros(1)}, {})

    def fail(tensors: object, filename: Path, metadata: object) -> None:  # its wording, as of safetensors 0.5 to 0.8
        filename.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(EnvironmentFault, match=rf"^no space left to write {re.escape(str(path))}; free some space"):
        save_tensors(path, {"new": np.zeros(1)}, {})
    assert names(tmp_path) == ["train.safetensors"]
    assert list(load_tensors(path)[0]) == ["old"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_a_write_that_the_system_stops_half_way(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    message = rf"^cannot write {re.escape(str(path))}: .*File too large.*; check the folder, or give another one$"
    with pytest.raises(EnvironmentFault, match=message), largest_file(1000):  # a real error of the system, not a mock
        if kind == "text":
            write_text(path, "x" * 100_000)
        else:
            save_tensors(path, {"x": np.zeros(100_000)}, {})
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("below", [("x",), ("x", "y", "z")])
def test_a_folder_that_is_a_file(tmp_path: Path, below: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("old")
    path = tmp_path.joinpath("file", *below)
    with pytest.raises(EnvironmentFault, match=rf"^cannot write {re.escape(str(path))}: .*; check the folder"):
        write_text(path, "new")
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "x")
        save_tensors(tmp_path / "a.safetensors", {"x": np.zeros(1)}, {})  # safetensors alone leaves 0600
        assert os.umask(umask) == umask  # looked at, and left as it was
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "a.safetensors")} == {mode}


@pytest.mark.parametrize("error", [errno.EPERM, errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_permissions_and_folder_flushes_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(error, os.strerror(error))

    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or error != errno.EPERM:
            refuse()
        real(descriptor)

    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "x")
    with staged_folder(tmp_path / "folder") as new:
        (new / "b.txt").write_text("y")
    assert (tmp_path / "a.txt").read_text() + (tmp_path / "folder" / "b.txt").read_text() == "xy"
    assert names(tmp_path) == ["a.txt", "folder"]


def test_a_flush_that_fails_is_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    for write in (lambda: write_text(tmp_path / "a.txt", "x"), lambda: stage(tmp_path / "folder", "x")):
        with pytest.raises(
            EnvironmentFault, match=rf"^cannot write {tmp_path}/.*: Input/output error; check the folder"
        ):
            write()
    assert names(tmp_path) == []


# Folders


def stage(folder: Path, text: str) -> None:
    with staged_folder(folder) as new:
        (new / "below").mkdir()
        (new / "below" / "file.txt").write_text(text)


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    for text in ("first", "second"):
        stage(folder, text)
        assert (folder / "below" / "file.txt").read_text() == text
        assert names(folder.parent) == ["there"]


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("step", ["block", "full disk", "rename"])
def test_a_failure_leaves_the_earlier_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None, step: str
) -> None:
    folder, rename = tmp_path / "folder", Path.rename
    if old is not None:
        stage(folder, old)

    def rename_but_new(path: Path, target: Path) -> Path:
        return no_space() if path.name == ".folder.new" else rename(path, target)  # type: ignore[func-returns-value,return-value]

    if step == "rename":
        monkeypatch.setattr(Path, "rename", rename_but_new)
    expected: type[Exception] = ValueError if step == "block" else EnvironmentFault
    with pytest.raises(expected), staged_folder(folder) as new:
        (new / "half").write_text("half")
        if step == "block":
            raise ValueError
        if step == "full disk":
            no_space()
    assert names(tmp_path) == ([] if old is None else ["folder"])
    assert old is None or (folder / "below" / "file.txt").read_text() == old


def test_what_a_killed_process_left_is_put_right(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    stage(folder, "old")
    folder.rename(tmp_path / ".folder.old")  # killed between the two renames
    (tmp_path / ".folder.new").mkdir()
    recover_folder(folder)
    assert names(tmp_path) == ["folder"] and (folder / "below" / "file.txt").read_text() == "old"
    (tmp_path / ".folder.old").mkdir()  # killed after them
    stage(folder, "new")
    assert names(tmp_path) == ["folder"] and (folder / "below" / "file.txt").read_text() == "new"


def test_json_keeps_letters_and_refuses_what_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"class": "größe", "few": None})
    assert path.read_text("utf-8") == '{\n  "class": "größe",\n  "few": null\n}\n'
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"top1": value})
    assert json.loads(path.read_text("utf-8")) == {"class": "größe", "few": None}
    assert names(tmp_path) == ["a.json"]


def test_only_our_temporaries_are_removed(tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    ours = [".train.safetensors.123.partial", "generator/.model.pt.99.partial"]
    others = ["a.partial", ".partial", ".download.partial", ".a.12.partial.bak", ".a.12x.partial", "b.12.partial"]
    for name in [*ours, *others]:
        (tmp_path / name).write_text("x")
    (tmp_path / "elsewhere").symlink_to(tmp_path.parent)
    remove_temporaries(tmp_path)
    assert [name for name in ours if (tmp_path / name).exists()] == []
    assert [name for name in others if not (tmp_path / name).exists()] == []


def test_a_killed_write_leaves_what_the_removal_removes(tmp_path: Path) -> None:
    writer = os.fork()
    if writer == 0:
        with atomic_path(tmp_path / "train.safetensors") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), 9)
    os.waitpid(writer, 0)
    assert names(tmp_path) == [f".train.safetensors.{writer}.partial"]
    remove_temporaries(tmp_path)
    assert names(tmp_path) == []


# Tensors


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    generator = np.random.default_rng(0)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "images": generator.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8),
        "labels": np.array([0, 1, -(2**63), 2**63 - 1, 3], dtype=np.int64),
        "scores": np.array([0.1, -0.0, np.inf, np.nan, 1e-45], dtype=np.float32),
        "empty": np.zeros((0, 3), np.uint8),
        "scalar": np.array(7, dtype=np.int64),
        "strided": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-1].T,
    }
    metadata = {"classes": ["größe", "no"], "imb": 1 / 3, "source": {"name": "digits", "counts": [5, 1]}, "val": None}
    save_tensors(path, tensors, metadata)
    loaded, found = load_tensors(path)
    assert found == {"format_version": 1, **metadata}
    assert set(loaded) == set(tensors)
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype, name
        assert loaded[name].shape == array.shape, name
        np.testing.assert_array_equal(loaded[name], array)
    assert np.signbit(loaded["scores"][1])
    with safe_open(path, framework="numpy") as file:
        assert list(file.metadata()) == ["saukit"]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_images_in_blocks_give_the_same_bytes(tmp_path: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 3, 5, 5), dtype=np.uint8)
    tensors = {"labels": np.arange(count), "an_index": np.arange(count) * 2**40}
    metadata = {"classes": ["cat", "été", '\t\x7f\u2028"', "猫"], "mean": [0.1]}
    save_tensors(tmp_path / "whole", {**tensors, "images": images}, metadata)
    save_with_images(tmp_path / "blocks", tensors, metadata, images.shape, (images[at : at + 3] for at in (0, 3, 6)))
    assert (tmp_path / "blocks").read_bytes() == (tmp_path / "whole").read_bytes()
    if count:
        with pytest.raises(ValueError, match="the blocks have other rows"):
            save_with_images(tmp_path / "short", tensors, metadata, images.shape, [images[:-1]])
        assert not (tmp_path / "short").exists()


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    x, y = np.arange(3), np.ones(2, np.float32)
    save_tensors(tmp_path / "a", {"x": x, "y": y}, {"b": 1, "a": 2})
    save_tensors(tmp_path / "b", {"y": y, "x": x}, {"a": 2, "b": 1})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


def test_a_foreign_or_damaged_tensor_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": np.zeros(100)}, {})
    whole = path.read_bytes()
    foreign: list[dict[str, str] | None] = [None, {"other": "{}"}, {"saukit": "{"}, {"saukit": "[1]"}]
    contents = [b"", b"abc", b"no tensors here, " * 9, whole[:-1], whole + b"x", whole[:9] + b"\xff" + whole[10:]]
    for metadata in foreign:
        contents.append(safetensors.numpy.save({"x": np.zeros(1)}, metadata=metadata))
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(path))} is not a saukit tensor file: .+"):
            load_tensors(path)
    path.unlink()
    with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(path))} is missing$"):
        load_tensors(path)
    path.mkdir()
    with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(path))} is not a saukit tensor file: .+"):
        load_tensors(path)


def test_tensors_of_a_newer_format(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": np.zeros(1)}, {"format_version": 2})
    message = rf"^{re.escape(str(path))} has format version 2, this saukit reads 1: update saukit$"
    with pytest.raises(DataError, match=message) as caught:
        load_tensors(path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("version", [0, None, "1", 1.0, True, -1, [1]])
def test_tensors_of_no_format(tmp_path: Path, version: object) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": np.zeros(1)}, {"format_version": version})
    message = re.escape(f"{path} is damaged: its format_version is {version!r}; remake the artefact with --force")
    with pytest.raises(CorruptArtifactError, match=f"^{message}$"):
        load_tensors(path)


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_sha256_against_hashlib(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


# Manifests

FILES = {"train.safetensors": b"images", "config.yaml": b"seed: 0\n", "counts.png": b"picture", "metrics.jsonl": b"{}"}


def artifact(folder: Path, files: dict[str, bytes] = FILES) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    summary = {"images": 3, "classes": ["größe"]}
    return write_manifest(
        folder, kind="split", files=list(files), inputs={"source": "ab" * 32}, summary=summary, device="cpu"
    )


def digest_by_hand(files: dict[str, bytes]) -> str:
    data = sorted(name for name in files if name.endswith((".safetensors", ".yaml")))
    text = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in data)
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    assert read_manifest(tmp_path, kind="split") is None
    assert read_manifest(tmp_path / "nowhere", kind="split") is None
    (tmp_path / "inputs.json").write_text("{}")
    written = artifact(tmp_path)
    read = read_manifest(tmp_path, kind="split")
    assert read == written
    assert (read.kind, read.device, read.inputs) == ("split", "cpu", {"source": "ab" * 32})
    assert read.summary == {"images": 3, "classes": ["größe"]}
    assert read.digest == digest_by_hand(FILES)
    assert read.files == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in sorted(FILES.items())
    }
    assert read.versions == package_versions()
    assert {"python", "saukit", "torch", "numpy"} <= set(read.versions)
    assert not (tmp_path / "inputs.json").exists()  # the manifest says it now


def change(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "longer":
        path.write_bytes(content + b"\0")
    elif how == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


REASONS = {
    "missing": "is missing",
    "truncated": "has {less} bytes instead of {size}",
    "longer": "has {more} bytes instead of {size}",
    "flipped": "was changed after it was written",
}


@pytest.mark.parametrize("how", REASONS)
@pytest.mark.parametrize("name", FILES)
def test_damage_to_any_file_is_found(tmp_path: Path, name: str, how: str) -> None:
    artifact(tmp_path)
    change(tmp_path / name, how)
    size = len(FILES[name])
    reason = REASONS[how].format(less=size - 1, more=size + 1, size=size)
    message = f"{tmp_path} is damaged: {name} {reason}; remake the artefact with --force"
    with pytest.raises(CorruptArtifactError, match=f"^{re.escape(message)}$") as caught:
        read_manifest(tmp_path, kind="split")
    assert caught.value.exit_code == 4
    assert read_manifest(tmp_path, kind="split", verify=False) is not None


def test_all_damaged_files_are_listed(tmp_path: Path) -> None:
    artifact(tmp_path)
    change(tmp_path / "config.yaml", "flipped")
    change(tmp_path / "counts.png", "missing")
    change(tmp_path / "train.safetensors", "truncated")
    with pytest.raises(CorruptArtifactError) as caught:
        read_manifest(tmp_path, kind="split")
    assert str(caught.value) == (
        f"{tmp_path} is damaged: config.yaml was changed after it was written, counts.png is missing, "
        "train.safetensors has 5 bytes instead of 6; remake the artefact with --force"
    )


@pytest.mark.parametrize("seal", [None, "", "0" * 64, 1, []])
def test_a_manifest_without_its_seal(tmp_path: Path, seal: object) -> None:
    artifact(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_text("utf-8")) | {"sha256": seal}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    message = re.escape(f"{tmp_path / 'manifest.json'} was changed after it was written: remake the artefact")
    with pytest.raises(CorruptArtifactError, match=message):
        read_manifest(tmp_path, kind="split", verify=False)


def test_a_flipped_bit_of_a_manifest_is_found_wherever_it_is(tmp_path: Path) -> None:
    artifact(tmp_path)
    path = tmp_path / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        if json.loads(content) == _json_or_none(bytes(damaged)):
            continue  # the spelling of a number or a space
        with pytest.raises((CorruptArtifactError, DataError), match=r"manifest\.json"):
            read_manifest(tmp_path, kind="split")


def _json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_an_edited_manifest_is_found(tmp_path: Path) -> None:
    written = artifact(tmp_path)
    resealed(tmp_path / "manifest.json", digest="0" * 64)
    misfit = re.escape(f"{tmp_path} is damaged: manifest.json (its digest does not fit its files); remake")
    with pytest.raises(CorruptArtifactError, match=misfit):
        read_manifest(tmp_path, kind="split")

    files = {name: record for name, record in written.files.items() if name != "train.safetensors"}
    resealed(tmp_path / "manifest.json", digest=written.digest, files=files)  # a data file let go of
    with pytest.raises(CorruptArtifactError, match=misfit):
        read_manifest(tmp_path, kind="split")

    (tmp_path / "train.safetensors").write_bytes(b"other!")  # a file and its record changed together
    record = {"sha256": sha256_file(tmp_path / "train.safetensors"), "bytes": 6}
    resealed(tmp_path / "manifest.json", files={**written.files, "train.safetensors": record})
    with pytest.raises(CorruptArtifactError, match=misfit):
        read_manifest(tmp_path, kind="split")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"config.yaml": {"sha256": "00"}}},
        {"files": {"config.yaml": None}},
        {"files": {"config.yaml": {"sha256": 1, "bytes": 8}}},
        {"files": ["config.yaml"]},
        {"files": {"config.yaml": {"bytes": 8}}},
        {"files": {"config.yaml": {"sha256": "00", "bytes": "8"}}},
        {"colour": "red"},
        {"created": 5},
        {"inputs": []},
        {"inputs": {"split": 5}},
        {"summary": None},
        {"versions": {"torch": 2}},
        {"device": None},
    ],
)
def test_a_manifest_of_the_wrong_shape(tmp_path: Path, changes: dict[str, Any]) -> None:
    artifact(tmp_path)
    resealed(tmp_path / "manifest.json", **changes)
    message = rf"^{re.escape(str(tmp_path / 'manifest.json'))} is damaged: .+; remake the artefact with --force$"
    with pytest.raises(CorruptArtifactError, match=message):
        read_manifest(tmp_path, kind="split", verify=False)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b'{"format_version": 0}', b"\xff\xfe"])
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes) -> None:
    artifact(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    message = rf"^{re.escape(str(tmp_path / 'manifest.json'))} is damaged: .+; remake the artefact with --force$"
    with pytest.raises(CorruptArtifactError, match=message):
        read_manifest(tmp_path, kind="split")


def test_a_manifest_of_a_newer_format_or_another_kind(tmp_path: Path) -> None:
    artifact(tmp_path)
    path = re.escape(str(tmp_path / "manifest.json"))
    with pytest.raises(CorruptArtifactError, match=f"^{path} describes a 'split' artefact where a 'run' one belongs; "):
        read_manifest(tmp_path, kind="run")
    resealed(tmp_path / "manifest.json", format_version=2)
    with pytest.raises(DataError, match=f"^{path} has format version 2, this saukit reads 1: update saukit$"):
        read_manifest(tmp_path, kind="split")


@pytest.mark.parametrize("content", [b"", b"{", b'{"format_version": 1, "a": 2, "sha256": "0"}', b"\xff"])
def test_a_sealed_document_names_its_own_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=rf"^{re.escape(str(tmp_path / 'x.json'))} .+[:;] do this$"):
        read_sealed(tmp_path / "x.json", remedy="do this")


def test_the_digest_is_of_the_data_not_of_the_pictures(tmp_path: Path) -> None:
    digest = artifact(tmp_path / "a").digest
    assert artifact(tmp_path / "b", {**FILES, "counts.png": b"another look"}).digest == digest
    assert artifact(tmp_path / "c", {**FILES, "metrics.jsonl": b"{} {}"}).digest == digest
    assert artifact(tmp_path / "d", {**FILES, "train.safetensors": b"imagez"}).digest != digest
    assert artifact(tmp_path / "e", {**FILES, "config.yaml": b"seed: 1\n"}).digest != digest
    renamed = {name.replace("train", "test"): content for name, content in FILES.items()}
    assert artifact(tmp_path / "f", renamed).digest != digest
    assert artifact(tmp_path / "g", dict(reversed(FILES.items()))).digest == digest


def test_no_manifest_vouches_for_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_manifest(tmp_path, kind="split", files=["train.safetensors"], inputs={}, summary={}, device="cpu")
    assert names(tmp_path) == []


# Files that join later


def test_added_files_are_vouched_for(tmp_path: Path) -> None:
    before = artifact(tmp_path)
    with added_files(tmp_path, kind="split", files=["results.json", "counts.png"]):
        (tmp_path / "results.json").write_text("{}")
        (tmp_path / "counts.png").write_bytes(b"a new picture")
    after = read_manifest(tmp_path, kind="split")
    assert after is not None
    assert set(after.files) == {*FILES, "results.json"}
    assert after.files["counts.png"]["bytes"] == 13
    assert (after.digest, after.created, after.inputs) == (before.digest, before.created, before.inputs)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(CorruptArtifactError, match=r"results\.json was changed after it was written"):
        read_manifest(tmp_path, kind="split")


@pytest.mark.parametrize("written", [[], ["results.json"], ["results.json", "counts.png"]])
def test_a_kill_between_leaves_the_artefact_valid(tmp_path: Path, written: list[str]) -> None:
    before = artifact(tmp_path)
    with added_files(tmp_path, kind="split", files=["results.json", "counts.png"]):
        (tmp_path / "results.json").write_text("the first")
        (tmp_path / "counts.png").write_text("the first")
    with (
        pytest.raises(KeyboardInterrupt),
        added_files(tmp_path, kind="split", files=["results.json", "counts.png"]),
    ):
        for name in written:
            (tmp_path / name).write_text("the second")
        raise KeyboardInterrupt
    after = read_manifest(tmp_path, kind="split")
    assert after is not None
    assert set(after.files) == {*FILES} - {"counts.png"}
    assert after.digest == before.digest


def test_files_join_a_complete_artefact_only_and_data_never(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path))} holds no complete split$"),
        added_files(tmp_path, kind="split", files=["results.json"]),
    ):
        pass
    before = artifact(tmp_path)
    with (
        pytest.raises(ValueError, match=r"^more\.safetensors: data files make the digest, they cannot be added later$"),
        added_files(tmp_path, kind="split", files=["results.json", "more.safetensors"]),
    ):
        pass
    assert read_manifest(tmp_path, kind="split") == before


# Sizes


def test_disk_space_that_does_not_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return type("Usage", (), {"free": 11 * 1024**2})

    monkeypatch.setattr("shutil.disk_usage", usage)
    folder = tmp_path / "not" / "there"
    check_disk_space(folder, 10 * 1024**2)  # and a tenth more is just there
    with pytest.raises(EnvironmentFault) as caught:
        check_disk_space(folder, 10 * 1024**2 + 100)
    assert str(caught.value) == (
        f"{folder} needs about 10 MiB but 11 MiB are free on its disk; free some space, or give another --workspace"
    )
    assert asked == [tmp_path, tmp_path]


def test_a_result_says_the_versions_it_depends_on() -> None:
    packages = ("saukit", "torch", "torchvision", "diffusers", "safetensors", "numpy", "pillow", "scikit-learn",
                "transformers", "peft", "accelerate")  # fmt: skip
    there = {name for name in packages if importlib.util.find_spec(IMPORTED.get(name, name)) is not None}
    assert package_versions().keys() == {"python", "platform", *there} and len(there) >= 8


IMPORTED = {"pillow": "PIL", "scikit-learn": "sklearn"}


def test_a_package_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "VERSIONED_PACKAGES", ("numpy", "no-such-package"))
    assert set(package_versions()) == {"python", "platform", "numpy"}
    assert package_versions()["numpy"] == np.__version__
