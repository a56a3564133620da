"""The rooms' order, and what `saukit --help` may load."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import saukit

PACKAGE = Path(saukit.__file__).parent
ROOMS = ("core", "data", "models", "training", "synthesis", "evaluation", "report", "deploy", "api", "cli")
API = {"__init__.py", "api.py"}  # the room of one module, and the package that passes on its names
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "torchvision", "diffusers", "transformers", "matplotlib", "sklearn", "scipy", "PIL", "safetensors")


def imported(source: str) -> Iterator[str]:
    """Every module of saukit that `source` imports, wherever in it; also those named by a whole string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "saukit")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"line {node.lineno}: a relative import hides its room")
            if node.module == "saukit":
                yield from (f"saukit.{alias.name}" for alias in node.names)
            elif node.module is not None and node.module.startswith("saukit."):
                yield node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("saukit."):
            parts = node.value.split(".")
            if parts[1] in ROOMS and all(part.isidentifier() for part in parts):  # import_module("saukit.data.split")
                yield node.value


def violations(source: str, room: str | None) -> list[str]:
    """Imports of a module in `room` (None: in no room) that the order forbids."""
    allowed = ROOMS[: ROOMS.index(room) + 1] if room else ()
    found = {name.split(".")[1] for name in imported(source) if "." in name}
    return sorted(other for other in found if other in ROOMS and other not in allowed)


def test_the_check_sees_imports_wherever_they_are() -> None:
    source = """
import saukit.training.losses
from saukit import evaluation, __version__
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from saukit.cli.main import app
def work():
    from saukit.synthesis.stage import synthesize
    import_module("saukit.models.backbones")
    from saukit.core.errors import DataError
    from saukit.api import train
"""
    assert violations(source, "data") == ["api", "cli", "evaluation", "models", "synthesis", "training"]
    assert violations(source, "training") == ["api", "cli", "evaluation", "synthesis"]
    assert violations(source, "api") == ["cli"]
    assert violations(source, "cli") == []
    assert violations(source, None) == sorted({*ROOMS} - {"data", "report", "deploy"})
    with pytest.raises(AssertionError, match="line 1: a relative import hides its room"):
        violations("from ..cli import main", "core")


def test_every_folder_is_a_known_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS) - {"api"}
    assert {path.name for path in PACKAGE.glob("*.py")} == API


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_from_rooms_above_it(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    room = parts[0] if len(parts) > 1 else "api"
    assert violations(path.read_text(encoding="utf-8"), room) == []


def test_training_never_imports_evaluation() -> None:
    # Told by the order too; here in its own right, since test data must not steer training.
    for path in (PACKAGE / "training").rglob("*.py"):
        assert not [name for name in imported(path.read_text(encoding="utf-8")) if "evaluation" in name.split(".")]


def test_help_loads_nothing_heavy() -> None:
    script = """
import contextlib, io, json, sys
from saukit.cli.main import app
texts = []
commands = [[], *[[command.name] for command in app.registered_commands]]
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app([*command, "--help"])
    texts.append(out.getvalue())
print(json.dumps({"modules": sorted(sys.modules), "texts": texts, "commands": commands}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert ["make-lt"] in found["commands"]
    assert all("Usage:" in text for text in found["texts"])
    assert "saukit.cli.main" in found["modules"]
    loaded = {name.split(".")[0] for name in found["modules"]}
    assert sorted(loaded.intersection(HEAVY)) == []
