"""Documents that somebody edited, with the hashes made to fit again: each value of each, in every wrong way.

The reader refuses such a document with its file, the value and the remedy. What it does not refuse is harmless: every
command that reads the document is run on all of those changes at once.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import Cli, Count, resealed, tree

from saukit.core.artifacts import read_manifest, write_sealed
from saukit.core.errors import CorruptArtifactError, DataError
from saukit.core.writing import sha256_file
from saukit.evaluation.compare import read_comparison
from saukit.evaluation.evaluate import read_results
from saukit.synthesis.outcome import read_audit, read_source
from saukit.training.metrics_log import read_log

RUN = ("--steps", "4", "--batch-size", "16", "--amp", "off")
COMPARE = ("compare", "--methods", "ce,sau+synth", "--seeds", "2", "--jobs", "1", *RUN)
SYNTH = ("synth", "--per-class-target", "20", "--train-steps", "3", "--train-batch-size", "4", "--sampler-steps", "2",
         "--amp", "off", "--preflight", "0", "--classifier", "ce")  # fmt: skip
TRAIN = ("train", "--method", "ce", "--no-synthetic", "--name", "ce", *RUN)
EVAL, PREDICT = ("eval", "--run", "ce"), ("predict", "ce", "picture.png")
EXPORT = ("export", "ce", "--to", "exported", "--force")
REPORT = ("report", "--runs", "ce", "--comparison", "main", "--out", "page.html", "--force")
REPORT_ALL = ("report", "--out", "page.html", "--force")
Command = tuple[str, ...]
Place = tuple[str | int, ...]


NAMES = tuple(map(str, range(10)))  # the classes of digits

# Of each document: what reads it, and the commands that do.
DOCUMENTS: dict[str, tuple[Callable[[Path], Any], tuple[Command, ...]]] = {
    "runs/ce/results.json": (
        lambda root: read_results(root / "runs/ce", NAMES), (EVAL, REPORT, EXPORT, (*COMPARE, "--force"))
    ),
    "runs/ce/metrics.jsonl": (lambda root: read_log(root / "runs/ce/metrics.jsonl"), (REPORT,)),
    "comparisons/main/compare.json": (
        lambda root: read_comparison(root / "comparisons/main", NAMES), (COMPARE, REPORT, REPORT_ALL)
    ),
    "synth/audit.json": (lambda root: read_audit(root / "synth"), (SYNTH, REPORT, (*COMPARE, "--force"))),
    "synth/source.json": (lambda root: read_source(root / "synth"), ((*SYNTH, "--reject-copies", "--refilter"),)),
    "split/manifest.json": (
        lambda root: read_manifest(root / "split", kind="split"),
        (("make-lt", "--imb", "50"), ("doctor",), ("train", "--dry-run"), REPORT),
    ),
    "synth/manifest.json": (
        lambda root: read_manifest(root / "synth", kind="synth"), (SYNTH, ("train", "--synthetic", "--dry-run"), REPORT)
    ),
    "runs/ce/manifest.json": (
        lambda root: read_manifest(root / "runs/ce", kind="run"), (TRAIN, EVAL, REPORT, EXPORT, COMPARE, PREDICT)
    ),
    "comparisons/main/manifest.json": (
        lambda root: read_manifest(root / "comparisons/main", kind="comparison"), (COMPARE, REPORT)
    ),
}  # fmt: skip
KEPT = ("sha256", "files", "digest", "kind", "inputs")  # of a manifest: what says which artefact it is
WRONG: tuple[Any, ...] = (None, "x", "0.5", -1, 0.5, 10**40, True, [], {}, ["x"], {"x": 1}, [[1]])


@pytest.fixture(scope="module")
def place(shared_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(shared_work, tmp_path_factory.mktemp("documents") / "work")


@pytest.fixture
def whole(place: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace with a comparison and an audit."""
    if not (place / "comparisons").exists():
        Image.new("RGB", (8, 8)).save(place / "picture.png")
        for command in ((*SYNTH, "--force"), COMPARE):
            assert cli(*command, "-w", place).code == 0
    copied = shutil.copytree(place, tmp_path / "work")
    monkeypatch.chdir(copied)
    return copied


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Where there is something in a document: of a list its first and last entry, of a configuration three options."""
    if place:
        yield place
    if isinstance(value, dict):
        for name in [*value][:3] if place[-1:] in (("config",), ("versions",)) else value:
            yield from places(value[name], (*place, name))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[index], (*place, index))


def at(document: Any, place: Place) -> Any:
    for name in place:
        document = document[name]
    return document


def changes(document: Any) -> Iterator[tuple[str, Place, Callable[[Any, Any], None]]]:
    """In words, where, and what to do to the container of the value: another value, none, or one more in a list."""
    for place in places(document):
        if place == ("lines",):  # which stands for the file itself
            continue
        was, words = at(document, place), ".".join(map(str, place))
        for wrong in WRONG:
            if type(wrong) is not type(was) or wrong != was:
                yield f"{words} = {wrong!r}", place, partial(put, wrong)
        yield f"{words} gone", place, lambda of, name: of.__delitem__(name)
        if isinstance(place[-1], int):
            yield f"{words} twice", place, lambda of, name: of.append(of[name])


def put(value: Any, container: Any, name: Any) -> None:
    container[name] = copy.deepcopy(value)


def read(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return {"lines": [json.loads(line) for line in path.read_text().splitlines()]}
    document = json.loads(path.read_text())
    return {key: value for key, value in document.items() if path.name != "manifest.json" or key not in KEPT}


def write(path: Path, document: Any, whole: dict[str, bytes]) -> None:
    """Put an edited document in its place, with the hashes that then fit."""
    if path.name == "manifest.json":
        kept = {key: value for key, value in json.loads(whole[path.name]).items() if key in KEPT and key != "sha256"}
        write_sealed(path, kept | document)
        return
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in document["lines"]) if lines else json.dumps(document))
    manifest = path.with_name("manifest.json")
    manifest.write_bytes(whole[manifest.name])
    files = json.loads(whole[manifest.name])["files"]
    resealed(manifest, files=files | {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}})


@pytest.fixture
def edited(whole: Path, request: pytest.FixtureRequest) -> tuple[Path, dict[str, bytes]]:
    """A document's path, and its bytes and its manifest's."""
    path: Path = whole / request.param
    return path, {file.name: file.read_bytes() for file in (path, path.with_name("manifest.json"))}


Edited = tuple[Path, dict[str, bytes]]


def refusal(root: Path, path: Path) -> str | None:
    """What the reader says of a document; None where it takes it."""
    reader, _ = DOCUMENTS[path.relative_to(root).as_posix()]
    try:
        reader(root)
    except (CorruptArtifactError, DataError) as error:
        return str(error)
    return None


def accepted(root: Path, path: Path, before: dict[str, bytes], record: Callable[[str, str], None]) -> list[Any]:
    """Documents with all changes at once that the reader takes alone, and takes together."""
    original = read(path)
    together: list[Any] = []
    for words, place, change in [*changes(original)]:
        document = copy.deepcopy(original)
        change(at(document, place[:-1]), place[-1])
        write(path, document, before)
        if (message := refusal(root, path)) is not None:
            record(words, message)
            continue
        for combined in [*together, copy.deepcopy(original)]:
            tried = copy.deepcopy(combined)
            try:
                if type(at(tried, place[:-1])) is not type(at(original, place[:-1])):
                    continue
                change(at(tried, place[:-1]), place[-1])
            except (AttributeError, KeyError, IndexError, TypeError):  # another change has taken its place away
                continue
            write(path, tried, before)
            if refusal(root, path) is None:
                together[:] = [other for other in together if other is not combined] + [tried]
                break
    return together


@pytest.mark.slow
@pytest.mark.parametrize("edited", DOCUMENTS, indirect=True)
def test_what_the_reader_takes_hurts_no_command(
    record_property: Count, cli: Cli, place: Path, whole: Path, edited: Edited
) -> None:
    path, before = edited
    refused: dict[str, str] = {}
    harmless = accepted(whole, path, before, refused.__setitem__)
    for words, message in refused.items():
        name = words.partition(" ")[0].rpartition(".")[2]
        assert path.name in message and len(message) < 2_000, (words, message)
        assert "--force" in message or "update saukit" in message, (words, message)
        said = (name, "entries", "once", "version", "method", "rivals")
        assert name.isdigit() or any(word in message for word in said), (words, message)
    _, commands = DOCUMENTS[path.relative_to(whole).as_posix()]
    record_property("cases", len(refused) + len(harmless) * len(commands))
    assert len(refused) > 10
    for document in harmless:
        for command in commands:
            shutil.rmtree(path.parent)  # which a command may have made again
            shutil.copytree(place / path.parent.relative_to(whole), path.parent)
            write(path, document, before)
            outcome = cli(*command, "-w", whole)
            assert outcome.code in (0, 2, 3, 4) and "Traceback" not in outcome.err, (command, outcome)


@pytest.mark.parametrize("edited", DOCUMENTS, indirect=True)
def test_every_command_refuses_what_the_reader_does(
    record_property: Count, cli: Cli, whole: Path, edited: Edited
) -> None:
    path, before = edited
    original = read(path)
    for _, place, change in changes(original):
        document = copy.deepcopy(original)
        change(at(document, place[:-1]), place[-1])
        write(path, document, before)
        if refusal(whole, path) is not None:
            break
    _, commands = DOCUMENTS[path.relative_to(whole).as_posix()]
    record_property("cases", len(commands))
    kinds = ("split", "synth", "runs", "comparisons")
    there = [tree(whole / kind) for kind in kinds]
    for command in commands:
        outcome = cli(*command, "-w", whole)
        assert [tree(whole / kind) for kind in kinds] == there, command
        assert outcome.code in ((0, 4) if command == REPORT_ALL or path.parent.name == "synth" else (4,)), outcome
        assert path.name in outcome.error or outcome.code == 0, (command, outcome)


def forged(root: Path, name: str, content: bytes | None) -> None:
    """Put another file in the place of one, or take one away, and have the manifest say so."""
    path = root / name
    manifest = path.with_name("manifest.json")
    files = json.loads(manifest.read_text())["files"]
    files.pop(path.name, None)
    if content is not None:
        path.write_bytes(content)
        files[path.name] = {"sha256": sha256_file(path), "bytes": len(content)}
    records = [f"{record['sha256']}  {key}\n" for key, record in sorted(files.items())
               if key.endswith((".safetensors", ".yaml"))]  # fmt: skip
    resealed(manifest, files=files, digest=hashlib.sha256("".join(records).encode()).hexdigest())


def without(path: Path, name: str) -> bytes:
    return b"".join(line for line in path.read_bytes().splitlines(keepends=True) if not line.startswith(name.encode()))


SUSPECTS = "part,index,file,label,suggested,confidence,class_mean,confidence_of_suggested\n"
FILES: list[tuple[str, bytes | str | None, Command, str]] = [
    ("runs/ce/errors.png", b"no picture", REPORT, "errors.png cannot be read"),
    ("runs/ce/errors.png", b"\x89PNG\r\n\x1a\n", REPORT, "errors.png cannot be read"),
    ("synth/closest.png", b"", REPORT, "closest.png cannot be read"),
    ("runs/ce/suspects.csv", b"a,b\n1,2\n", REPORT, "suspects.csv is damaged: row 1 has not part, index"),
    ("runs/ce/suspects.csv", f"{SUSPECTS}train,1,,0\n".encode(), REPORT, "suspects.csv is damaged: row 1"),
    ("runs/ce/suspects.csv", b"\xff", REPORT, "suspects.csv is damaged: it is not UTF-8"),
    ("runs/ce/suspects.csv", SUSPECTS.encode() + b"x" * 200_000, REPORT, "suspects.csv is damaged: field larger"),
    ("runs/ce/config.yaml", "lr", EXPORT, "config.yaml: lr is missing; start over with --force"),
    ("runs/ce/config.yaml", "weight_decay", EXPORT, "config.yaml: weight_decay is missing"),
    ("runs/ce/metrics.jsonl", b"", REPORT, "lines has 0 entries"),
    ("runs/ce/metrics.jsonl", b"\n\n", REPORT, "line 1 of"),
    ("split/config.yaml", b"imb: x\n", REPORT_ALL, "config.yaml: imb: 'x' is not a number"),
    ("synth/shard-00000.safetensors", None, ("train", "--synthetic", "--dry-run"), "names no shard"),
]


@pytest.mark.parametrize(("name", "content", "command", "message"), FILES)
def test_files_that_the_manifest_vouches_for(
    cli: Cli, whole: Path, tmp_path: Path, name: str, content: bytes | str | None, command: Command, message: str
) -> None:
    work = shutil.copytree(whole, tmp_path / "copy")
    forged(work, name, without(work / name, content) if isinstance(content, str) else content)
    if content is None:
        for shard in (work / name).parent.glob("shard-*"):
            forged(work, shard.relative_to(work).as_posix(), None)
    outcome = cli(*command, "-w", work)
    assert outcome.code == 4 and message in outcome.error and "Traceback" not in outcome.err, outcome
