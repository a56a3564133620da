"""Only SaukitError leaves a reader, whatever the bytes; what readers refused once is kept as a case."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import Count

from saukit.core.artifacts import load_tensors, read_manifest
from saukit.core.config import load_config
from saukit.core.documents import read_json, read_json_lines, read_yaml
from saukit.core.errors import SaukitError
from saukit.core.state import load_state
from saukit.data.config import SplitConfig
from saukit.data.images import EncodedImages, mapped
from saukit.data.part_files import read_part_files
from saukit.data.synthetic import load_shard
from saukit.evaluation.config import CompareConfig
from saukit.models.model_file import load_model
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators.prompts import read_prompts, read_texts
from saukit.training.config import ResolvedTrainConfig, TrainConfig
from saukit.training.metrics_log import MetricsLog

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

EXAMPLES = 80
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "json": ("x.json", read_json),
    "lines": ("x.jsonl", read_json_lines),
    "yaml": ("x.yaml", read_yaml),
    "texts": ("x.yaml", lambda path: read_yaml(path, texts=True)),
    "prompts": ("x.yaml", read_prompts),
    "descriptions": ("x.json", read_texts),
    "split": ("config.yaml", lambda path: load_config(SplitConfig, path)),
    "synth": ("config.yaml", lambda path: load_config(SynthConfig, path)),
    "train": ("config.yaml", lambda path: load_config(TrainConfig, path)),
    "resolved": ("config.yaml", lambda path: load_config(ResolvedTrainConfig, path)),
    "compare": ("config.yaml", lambda path: load_config(CompareConfig, path)),
    "manifest": ("manifest.json", lambda path: read_manifest(path.parent, kind="run")),
    "tensors": ("x.safetensors", load_tensors),
    "rows": ("x.safetensors", lambda path: mapped(path, "bytes", "I64")),
    "shard": ("x.safetensors", lambda path: load_shard(path, (8, 8))),
    "images": ("x.safetensors", lambda path: EncodedImages([path], (8, 8))[:]),
    "model": ("x.safetensors", load_model),
    "files": ("files.csv", lambda path: read_part_files(path.parent)),
    "state": ("x.pt", lambda path: load_state(path, torch.device("cpu"), made_from={}, warn=print)),
    "log": ("metrics.jsonl", lambda path: MetricsLog(path, keep_steps=2).close()),
}
# Pieces that mean something to one of the readers.
PIECES = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    '"',
    "'",
    "\n",
    "- ",
    "? ",
    "<<",
    "&a",
    "*a",
    "!!int",
    "!x",
    "|\n ",
    ">",
    "#",
    "%YAML 1.1\n",
    "---",
    "...",
    "\\u",
    "\\ud800",
    "\\x",
    "1e999",
    ".inf",
    ".nan",
    "NaN",
    "0x",
    "0b_",
    "1:30",
    "2024-01-01",
    "2024-99-01",
    "null",
    "~",
    "true",
    "no",
    "9" * 50,
    "9" * 400,
    "method",
    "lr",
    "counts",
    "train",
    "variants",
    "files",
    "sha256",
    "format_version",
    "kind",
    "digest",
    "\x00",
    "\x1b",
    "\ufeff",
    "\u2028",
    "é",
    "=",
    "\t",
    "  ",
]
MANIFEST = {"format_version": 1, "kind": "run", "digest": "x", "inputs": {},
            "files": {"a": {"sha256": "x", "bytes": 1}},
            "summary": {}, "device": "cpu", "created": "now", "versions": {}}  # fmt: skip


def strategies(name: str) -> Any:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(PIECES),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
    text = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=40).map("".join)
    found = st.binary(max_size=300) | text.map(lambda it: it.encode("utf-8", "surrogatepass"))
    found |= values.map(lambda it: json.dumps(it).encode())
    if name == "manifest":
        keys = st.sampled_from(sorted(MANIFEST))
        found |= st.dictionaries(keys, values, max_size=3).map(lambda it: json.dumps(MANIFEST | it).encode())
    if READERS[name][0].endswith("safetensors"):
        sizes = st.integers(-2, 9) | st.integers()
        array = {"dtype": st.sampled_from(["U8", "I64", "F32"]), "shape": st.lists(sizes, max_size=4) | values,
                 "data_offsets": st.lists(sizes, max_size=3) | values}  # fmt: skip
        names = st.sampled_from(["bytes", "offsets", "images", "labels", "seeds", "__metadata__"])
        header = st.dictionaries(names, st.fixed_dictionaries({}, optional=array) | values, max_size=4)
        found |= st.builds(safetensors_file, header, st.binary(max_size=80))
    if name in ("split", "synth", "train", "compare", "resolved"):
        kind = {"split": SplitConfig, "synth": SynthConfig, "compare": CompareConfig}.get(name, TrainConfig)
        fields = st.sampled_from(sorted(kind.__dataclass_fields__))  # type: ignore[attr-defined]
        found |= st.dictionaries(fields, values, max_size=6).map(lambda change: json.dumps(change).encode())
    return found


def safetensors_file(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def only_saukit_errors(read: Callable[[Path], Any], path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read(path)
    except SaukitError as error:
        assert str(error) and len(str(error)) < 20_000


@pytest.mark.parametrize("name", READERS)
def test_only_saukit_errors_leave_a_reader(record_property: Count, name: str, tmp_path: Path) -> None:
    (file, read), tried = READERS[name], 0

    def attempt(content: bytes) -> None:
        nonlocal tried
        tried += 1
        only_saukit_errors(read, tmp_path / file, content)

    settings = hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True)
    settings(hypothesis.given(strategies(name))(attempt))()
    record_property("cases", tried)


HEADERS: list[dict[str, Any]] = [
    {"bytes": {"data_offsets": [], "shape": []}},
    {"offsets": {"data_offsets": [0, 16], "shape": []}},
    {"offsets": {"data_offsets": [0, 16], "shape": [-2]}, "bytes": {"data_offsets": [16], "shape": [0]}},
    {"offsets": {"data_offsets": [0, 16], "shape": [0]}, "bytes": {"data_offsets": [0], "shape": [0]}},
    {"offsets": {"data_offsets": [0, 16], "shape": [2]}, "bytes": {"data_offsets": [16], "shape": [0]}},
    {"offsets": {"data_offsets": [0, 16], "shape": [1, 2]}, "bytes": {"data_offsets": [16], "shape": [0]}},
]
CORPUS = [
    b"",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"{}",
    b"[]",
    b"null",
    b'{"a":1}',
    b"- - - a",
    b"? ? ?",
    b"a: b: c",
    b"{[]: 1}",
    b"!!binary x",
    b"&a [*a]",
    b"*a",
    b"\x85",
    b"%TAG ! x",
    b'{"format_version":1}',
    b'{"format_version":{}}',
    b"0b_",
    b"0x_",
    b"-0b",
    b'{"format_version":1,"files":[]}',
    b"lr: {}",
    b"counts: {1: 2}",
    b"counts: [[1, 2]]",
    b"method: [sau]",
    b"lr: 1" + b"0" * 90,
    b"variants: {a: 1}",
    b"train: 3",
    b"epochs: 1.0",
    b"lr: '1e5'",
    b"lr: '" + b"9" * 9000 + b"'",
    b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
    b"\xff" * 8 + b"{",
    b'{"\\ud800": 1}',
    b'"\\ud800"',
    b'a: "\\ud800"',
    b'a: "\\UFFFFFFFF"',
    b".inf: .nan",
    b"{.nan: 1, .nan: 2}",
    b"190:20:30: 1",
    b"a: 190:20:30.15",
    b"2001-12-14t21:59:43.10-05:00",
    b"a: 1_000_000",
    b"a: ._",
    b"a: +.inf",
    b"a: 0o8",
    b"a: 09",
    *(safetensors_file(header, bytes(16)) for header in HEADERS),
]


@pytest.mark.parametrize("name", READERS)
def test_what_a_longer_search_tried(record_property: Count, name: str, tmp_path: Path) -> None:
    file, read = READERS[name]
    record_property("cases", len(CORPUS))
    for content in CORPUS:
        only_saukit_errors(read, tmp_path / file, content)
