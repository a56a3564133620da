"""The folder that holds one split and all made from it, its locks, and the rule for running a command again."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from saukit.core.artifacts import CONFIG_NAME, MANIFEST_NAME, Manifest, read_manifest, write_json
from saukit.core.config import differences, load_config, load_saved, to_yaml
from saukit.core.documents import START_OVER, read_json
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault, SaukitError, UsageError
from saukit.core.files import link_target
from saukit.core.locks import hold
from saukit.core.words import DEFAULT_WORKSPACE, is_text, name_problem, one_line
from saukit.core.writing import (
    INPUTS_NAME,
    expect,
    forget_hashes,
    intact,
    is_hash,
    is_temporary,
    remove_temporaries,
    strangers,
    sweep,
    write_text,
)

Config = TypeVar("Config")


@dataclass(frozen=True)
class Workspace:
    """Where each artefact of a workspace lives: `split`, `synth`, and one folder per run."""

    root: Path

    @property
    def split(self) -> Path:
        """The long-tailed split."""
        return self.root / "split"

    @property
    def synth(self) -> Path:
        """The cache of synthetic images."""
        return self.root / "synth"

    def run(self, name: str) -> Path:
        """The run called `name`. Raises: UsageError if that cannot be a folder's name."""
        return self._named("run", name)

    def comparison(self, name: str) -> Path:
        """The comparison called `name`. Raises: UsageError if that cannot be a folder's name."""
        return self._named("comparison", name)

    def _named(self, kind: str, name: str) -> Path:
        if (problem := name_problem(f"{kind} name", name)) is not None:
            raise UsageError(problem)
        return self.root / f"{kind}s" / name

    def command(self, text: str) -> str:
        """The command `text` as it is typed for this workspace: with -w, unless it is the default one."""
        return text if self.root == DEFAULT_WORKSPACE else f"{text} -w {shlex.quote(str(self.root))}"

    def run_names(self) -> list[str]:
        """Names of the complete runs, the latest completed last; one damaged, or of a newer saukit, hides no other."""
        completed = []
        for folder in self.folders("run"):
            with contextlib.suppress(CorruptArtifactError, DataError):
                manifest = read_manifest(folder, kind="run", verify=False)
                if manifest is not None:
                    completed.append((manifest.created, folder.name))
        return [name for _, name in sorted(completed)]

    def folders(self, kind: Literal["run", "comparison"]) -> list[Path]:
        """The folders of runs or of comparisons, by name; without one that somebody renamed to what is not text,
        which no file could mention. Raises: OSError if that cannot be read."""
        try:
            there = sorted((self.root / f"{kind}s").iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [path for path in there if path.is_dir() and is_text(path.name)]

    @contextlib.contextmanager
    def lock(self, artifact: Path, *, tidy: bool = True) -> Iterator[None]:
        """Hold the one writer's lock of `artifact`, and clear what a killed writer left half-written in it.

        `tidy` False clears nothing: for an artefact to which other processes write parts under locks of their own.
        Raises: as `core.locks.hold`; EnvironmentFault for a folder of it that is a link, which leads elsewhere.
        """
        self._refuse_links(artifact)
        path = self.root / f".{artifact.relative_to(self.root).as_posix().replace('/', '-')}.lock"
        with hold(path, artifact):
            if tidy and artifact.exists():
                remove_temporaries(artifact)
            yield

    def _refuse_links(self, artifact: Path) -> None:
        for folder in (artifact, *artifact.parents):
            if folder == self.root:
                return
            if (target := link_target(folder)) is not None:
                raise EnvironmentFault(
                    f"{folder} is a link to {target}, and saukit writes only inside its workspace: "
                    "put the folder itself there, or give the --workspace that it leads to"
                )


State = Literal["new", "partial", "complete"]


def prepare(
    folder: Path,
    config: object,
    *,
    kind: str,
    force: bool,
    resume: bool,
    another: str,
    inputs: Mapping[str, str] | None = None,
    keep: Collection[str] = (),
) -> State:
    """Apply the rule for running a command again, and leave `folder` ready; call it under the artefact's lock.

    complete, same config: "complete", nothing to do. Interrupted, same config, `resume`: "partial", go on from there.
    Nothing there, or `force`: what saukit wrote is removed, config.yaml is written, "new"; files of others stay.
    `another` names the other way on in the error (such as "another --name"); `inputs` maps the artefacts it is made
    from to their digests. Files of interrupted work that are not as they were written are removed, to be made again;
    those called `keep` cannot be.
    Raises: UsageError for another config (it lists the fields), or for an interrupted artefact without `resume`;
    CorruptArtifactError for a damaged file that cannot be made again.
    """
    state: State = "new"
    if force:
        claim(folder, type(config), kind=kind, another=another)
    if not (force and _remove_artifact(folder, kind)):
        state = existing_state(folder, config, kind=kind, another=another, inputs=inputs)
    if state == "partial" and not resume:
        raise UsageError(f"{folder} holds an interrupted {kind}: continue it with --resume, or start over with --force")
    if state == "partial":
        sweep(folder, kind=kind, keep=keep)
    if state == "new":
        write_json(folder / INPUTS_NAME, dict(inputs or {}))
        write_text(folder / CONFIG_NAME, to_yaml(config))
    if state == "complete":
        forget_hashes(folder)
        (folder / INPUTS_NAME).unlink(missing_ok=True)
    return state


@contextlib.contextmanager
def reopened(folder: Path, config: object, *, kind: str, inputs: Mapping[str, str]) -> Iterator[None]:
    """Make a complete artefact unfinished again, under another configuration; call it under the artefact's lock.

    What vouches for it goes first, and config.yaml changes last, after the block, so that a kill in between leaves the
    unfinished work of before and no wrong artefact. The hashes of its files are noted before that.
    """
    if (manifest := read_manifest(folder, kind=kind, verify=False)) is not None:
        for name, record in manifest.files.items():
            expect(folder / name, record["sha256"])
    write_json(folder / INPUTS_NAME, dict(inputs))
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    yield
    write_text(folder / CONFIG_NAME, to_yaml(config))


def existing_state(
    folder: Path, config: Config, *, kind: str, another: str, inputs: Mapping[str, str] | None = None
) -> State:
    """What `folder` holds of the artefact that `config` describes; writes nothing.

    Raises: UsageError if it was made by another config or from other inputs, CorruptArtifactError if it is damaged.
    """
    claim(folder, type(config), kind=kind, another=another)
    manifest = read_manifest(folder, kind=kind)
    if not (folder / CONFIG_NAME).exists():
        there = folder.iterdir() if folder.exists() else ()
        # But for what a kill may leave before there is a config.yaml.
        if any(not (path.name == INPUTS_NAME or is_hash(path) or is_temporary(path)) for path in there):
            if intact(folder / INPUTS_NAME):
                raise CorruptArtifactError(f"{folder / CONFIG_NAME} is missing: {START_OVER}")
            raise UsageError(f"{folder} exists but saukit did not write it: move it away, or give {another}")
        return "new"
    made_from = _inputs_in_the_making(folder, kind) if manifest is None else manifest.inputs
    changed = differences(load_saved(type(config), folder / CONFIG_NAME), config)
    if changed:
        raise UsageError(
            f"{folder} was made with another configuration ({'; '.join(changed)}): "
            f"replace it with --force, or give {another}"
        )
    other = [name for name in {**made_from, **(inputs or {})} if made_from.get(name) != (inputs or {}).get(name)]
    if other:
        raise UsageError(
            f"{folder} was made from another {' and '.join(other)} than this workspace holds now: "
            f"replace it with --force, or give {another}"
        )
    return "partial" if manifest is None else "complete"


def claim(folder: Path, config_type: type[object], *, kind: str, another: str) -> None:
    """See that what is in the place of an artefact of `kind` is one, whole, damaged or unfinished, before --force takes
    it away or a message says that it would. What has neither config.yaml nor manifest is `existing_state`'s to judge.

    Raises: UsageError for a file, an artefact of another kind, and what saukit did not write.
    """
    config, found = folder / CONFIG_NAME, _kind_there(folder)
    reason = "exists but saukit did not write it" if found is None else f"holds a {found}, not a {kind}"
    if folder.is_dir():
        if found == kind or not (os.path.lexists(config) or os.path.lexists(folder / MANIFEST_NAME)):
            return
        if found is None:
            if intact(folder / INPUTS_NAME) and not intact(config):  # it is damaged, which others tell
                return
            with contextlib.suppress(CorruptArtifactError):
                load_config(config_type, config, fault=CorruptArtifactError)
                return
            reason = f"holds an unfinished artefact that is no {kind}" if intact(config) else reason
    elif not os.path.lexists(folder):
        return
    raise UsageError(f"{folder} {reason}: move it away, or give {another}")


def _kind_there(folder: Path) -> str | None:
    """The kind of artefact that the manifest in `folder` describes, damaged or of a newer saukit; None without one."""
    try:
        document = read_json(folder / MANIFEST_NAME)
    except CorruptArtifactError:
        return None
    is_manifest = {"kind", "digest", "files"} <= document.keys() and isinstance(document["kind"], str)
    return one_line(document["kind"]) if is_manifest else None


def _remove_artifact(folder: Path, kind: str) -> bool:
    """Remove what saukit wrote, and say whether others' files, which stay, keep the folder there. A folder that it did
    not write stays too, for `existing_state` to complain of.

    What vouches for it goes first and config.yaml last, or it stays beside others' files until the next one takes its
    place: a kill in between leaves remains, not a wrong artefact.
    """
    if not ((folder / CONFIG_NAME).exists() or (folder / MANIFEST_NAME).exists() or intact(folder / INPUTS_NAME)):
        return False
    recorded: dict[str, Any] = {}
    with contextlib.suppress(SaukitError, TypeError, ValueError):
        recorded = dict(read_json(folder / MANIFEST_NAME).get("files", {}))
    kept = {parent for path in strangers(folder, kind, recorded) for parent in (path, *path.parents)}
    for name in (MANIFEST_NAME, INPUTS_NAME):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder after what is in it
        if path in kept or path == folder / CONFIG_NAME:
            continue
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    if not kept:
        shutil.rmtree(folder)
    return bool(kept)


def _inputs_in_the_making(folder: Path, kind: str) -> dict[str, str]:
    if not os.path.lexists(folder / INPUTS_NAME):  # such as after a kill while --force removed it
        raise UsageError(f"{folder} holds only remains of a {kind}: start over with --force")
    for name in (INPUTS_NAME, CONFIG_NAME):
        if not intact(folder / name):
            raise CorruptArtifactError(f"{folder / name} was changed after it was written: {START_OVER}")
    inputs: dict[str, str] = read_json(folder / INPUTS_NAME, remedy=START_OVER)
    return inputs


def require(folder: Path, *, kind: str, command: str) -> Manifest:
    """The verified manifest of an artefact that must be there.

    Raises: DataError that names the command which makes it, CorruptArtifactError if it is damaged.
    """
    manifest = read_manifest(folder, kind=kind)
    if manifest is None:
        state = "is not complete" if folder.exists() else "is not there"
        raise DataError(f"the {kind} in {folder} {state}: run `{command_for(folder, command)}` first")
    return manifest


def require_made_from(manifest: Manifest, folder: Path, *, split: Manifest, command: str) -> None:
    """Raises: DataError if the artefact in `folder` was made from another split than the workspace's own."""
    if manifest.inputs.get("split") != split.digest:
        raise DataError(
            f"{folder} was made from another split than the one in this workspace: "
            f"remake it with `{command_for(folder, f'{command} --force')}`, or give the workspace it belongs to"
        )


def command_for(folder: Path, command: str) -> str:
    """`command` for the workspace in which the artefact `folder` lies."""
    root = folder.parent.parent if folder.parent.name in ("runs", "comparisons") else folder.parent
    return Workspace(root).command(command)
