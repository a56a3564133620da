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
API = {"__init__.py", "__main__.py", "api.py"}  # the package that passes on names, the program, the room of one module
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = (
    "numpy",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "matplotlib",
    "sklearn",
    "scipy",
    "PIL",
    "safetensors",
)


def imported(source: str) -> Iterator[str]:
    """Every module of saukit that `source` imports, wherever in it; also those named by a whole string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "saukit")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError(f"line {node.lineno}: a relative import hides its room")
            if node.module is not None and node.module.split(".")[0] == "saukit":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("saukit."):
            parts = node.value.split(".")
            if parts[1] in ROOMS and all(part.isidentifier() for part in parts):  # import_module("saukit.data.split")
                yield node.value


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(["saukit", *(part for part in parts if part != "__init__")])


NAMES = {module_name(path) for path in MODULES}


def module_of(name: str) -> str:
    """The module that an imported name is, or is of."""
    return name if name in NAMES else module_of(name.rpartition(".")[0])


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of modules each of which imports every other, by one way or another."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [*graph[start]]
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead += graph[module]
        return seen

    reach = {module: reached(module) for module in graph}
    return {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in graph
        if module in reach[module]
    }


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
    room = parts[0] if len(parts) > 1 else {"__main__.py": "cli"}.get(parts[0], "api")
    assert violations(path.read_text(encoding="utf-8"), room) == []


def test_training_never_imports_evaluation() -> None:
    # Told by the order too; here in its own right, since test data must not steer training.
    for path in (PACKAGE / "training").rglob("*.py"):
        assert not [name for name in imported(path.read_text(encoding="utf-8")) if "evaluation" in name.split(".")]


def test_a_circle_is_found_however_long() -> None:
    assert [module_of(name) for name in ("saukit.__version__", "saukit.core.errors.DataError")] == [
        "saukit",
        "saukit.core.errors",
    ]
    chain = {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set[str]()}
    assert circles(chain) == set()
    assert circles({**chain, "d": {"b"}}) == {frozenset("bcd")}
    assert circles({**chain, "b": {"a", "c"}, "d": {"c"}}) == {frozenset("ab"), frozenset("cd")}


def test_no_files_import_each_other_in_a_circle() -> None:
    # Imports inside functions and for the type checker alone count too.
    imports = {module_name(path): {*map(module_of, imported(path.read_text(encoding="utf-8")))} for path in MODULES}
    assert circles({name: found - {name} for name, found in imports.items()}) == set()
    importers = [name for name, found in imports.items() if "saukit" in found]
    assert importers == [], "the package passes on names of its modules: import them from there"


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


def test_every_module_can_be_imported_on_windows(tmp_path: Path) -> None:
    # What others import is loaded first, as on a system that has it all; then saukit meets what Windows lacks.
    script = """
import importlib, os, signal, sys
from pathlib import Path
names = sys.argv[2:]
def load():
    for name in names:
        importlib.import_module(name)
load()
for name in names:
    sys.modules.pop(name)
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("O_DIRECTORY", "O_NOFOLLOW", "fchmod", "fork", "getuid", "sched_getaffinity", "sysconf", "uname"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGPIPE"):
    delattr(signal, name)
load()

from saukit.core import artifacts, device, interrupts, machine
import torch
assert device.peak_memory(torch.device("cpu")) is None
assert machine.usable_cores() >= 1
machine.available_memory()
with interrupts.StopRequest():
    artifacts.write_text(Path(sys.argv[1]), "written")
"""
    written = tmp_path / "file.txt"
    done = subprocess.run([sys.executable, "-c", script, str(written), *sorted(NAMES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert written.read_text() == "written"
