"""What a comparison will be, before its first run: its labels, their configurations, and which runs exist already."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from saukit.core.artifacts import CONFIG_NAME, read_manifest
from saukit.core.config import from_mapping, load_saved, read_fields, to_mapping
from saukit.core.errors import CorruptArtifactError, SaukitError, UsageError
from saukit.core.options import check, without_effect
from saukit.core.workspace import State, Workspace, existing_state
from saukit.data.split import Split, load_split
from saukit.evaluation.config import GRAMMAR, IN_A_SPEC, CompareConfig, overlay, parse_method
from saukit.training.config import ResolvedTrainConfig, TrainConfig, default_run_name
from saukit.training.methods import METHODS
from saukit.training.plan import plan_training

PINNED = ("preset", "amp")  # what the device decides if nobody says it, so a saved comparison holds what it was


@dataclass(frozen=True)
class Contender:
    """A label of a comparison: its resolved configuration with the default seed, and what its runs are made from.

    `images_seen` counts each view of each image of a whole run: what its time should go with.
    """

    label: str
    config: ResolvedTrainConfig
    inputs: dict[str, str]
    is_variant: bool
    steps: int
    images_seen: int

    def seeded(self, seed: int) -> ResolvedTrainConfig:
        """The resolved configuration of one of its runs."""
        return replace(self.config, seed=seed)

    def default_name(self, seed: int) -> str:
        """What a new run of it is called, as long as no other run is."""
        if not self.is_variant:
            return default_run_name(self.seeded(seed))
        return self.label if seed == TrainConfig.seed else f"{self.label}-seed{seed}"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison: where it is or will be, and how far it has come."""

    contender: Contender
    seed: int
    name: str
    state: State

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.contender.label} seed {self.seed}"


@dataclass(frozen=True)
class ComparisonPlan:
    """All that is known before the first step."""

    config: CompareConfig
    split: Split
    contenders: list[Contender]
    runs: list[PlannedRun]

    @property
    def baseline(self) -> str:
        """The label that differences are to."""
        assert self.config.baseline is not None  # the configuration of a plan is resolved
        return self.config.baseline

    @property
    def inputs(self) -> dict[str, str]:
        """The split, and the cache if a method trains on it."""
        return {name: digest for contender in self.contenders for name, digest in contender.inputs.items()}

    @property
    def to_come(self) -> list[PlannedRun]:
        """The runs that are not complete."""
        return [run for run in self.runs if run.state != "complete"]

    def expected_seconds(self, measure: Callable[[Contender], float]) -> float:
        """What the runs to come take one after another: `measure` gives the seconds of one run with each backbone, and
        the others go with their images and views."""
        paces: dict[str, float] = {}
        for contender in (run.contender for run in self.to_come):
            if contender.config.backbone not in paces:
                paces[contender.config.backbone] = measure(contender) / contender.images_seen
        return sum(paces[run.contender.config.backbone] * run.contender.images_seen for run in self.to_come)


def plan_comparison(config: CompareConfig, workspace: Workspace, *, device: torch.device) -> ComparisonPlan:
    """Resolve every method and find its runs; trains nothing and writes nothing.

    Raises: the errors of `plan_training` for all methods at once; UsageError for labels that are there twice, for two
    labels that are one configuration, and for an unknown baseline; CorruptArtifactError for a damaged run.
    """
    check(config)
    wanted = _wanted(config)
    if not wanted:
        raise UsageError(
            f"no methods: give --methods ce,balanced-softmax,sau+synth (each {GRAMMAR}), or --config with a sweep file"
        )
    labels = [label for label, _ in wanted]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} is both a method and the label of a variant: give the variant another")
    baseline = config.baseline or labels[0]
    if baseline not in labels:
        raise UsageError(f"baseline {baseline!r} is none of the methods: {', '.join(labels)}")
    split = load_split(workspace)
    contenders = _resolve_all(wanted, config.methods, workspace, device)
    for index, contender in enumerate(contenders):
        for other in contenders[:index]:
            if other.config == contender.config:
                raise UsageError(f"{other.label} and {contender.label} are one configuration: leave one of them out")
    # As the values that they were read as, so that two ways to write a number are one.
    variants = {label: read_fields(TrainConfig, fields)[0] for label, fields in (config.variants or {}).items()}
    resolved = replace(
        config,
        variants=variants or None,
        baseline=baseline,
        train=_pinned(config.train or {}, wanted, contenders),
    )
    catalogue = _catalogue(workspace)
    claimed: dict[str, ResolvedTrainConfig] = {}
    runs = []
    for seed in range(config.seeds):
        for contender in contenders:
            name, state = locate(contender, seed, workspace, catalogue=catalogue, claimed=claimed)
            claimed[name] = contender.seeded(seed)
            runs.append(PlannedRun(contender, seed, name, state))
    return ComparisonPlan(resolved, split, contenders, runs)


def locate(
    contender: Contender,
    seed: int,
    workspace: Workspace,
    *,
    catalogue: Mapping[str, tuple[ResolvedTrainConfig, dict[str, str]]] | None = None,
    claimed: Mapping[str, ResolvedTrainConfig] | None = None,
) -> tuple[str, State]:
    """The name of a contender's run and how far it has come.

    Any complete run of the same configuration and inputs will do, whatever it is called. A new one takes the default
    name; if that is another run's (in the workspace, or `claimed` by one to come), some digits of its own make it one.
    Raises: CorruptArtifactError if the run is damaged.
    """
    config, wanted = contender.seeded(seed), contender.default_name(seed)
    try:
        for name, (made, inputs) in (_catalogue(workspace) if catalogue is None else catalogue).items():
            if made == config and inputs == contender.inputs:
                read_manifest(workspace.run(name), kind="run")
                return name, "complete"
        if (claimed or {}).get(wanted, config) == config:
            try:
                return wanted, _state(wanted, contender, config, workspace)
            except UsageError:  # another configuration's, or made from other inputs, or not saukit's
                pass
        document = json.dumps([to_mapping(config), contender.inputs], sort_keys=True)
        name = f"{wanted}-{hashlib.sha256(document.encode()).hexdigest()[:6]}"
        return name, _state(name, contender, config, workspace)
    except CorruptArtifactError as error:
        raise CorruptArtifactError(
            f"{error} (of `saukit train`), or move the folder away: the comparison then trains it anew"
        ) from None


def _state(name: str, contender: Contender, config: TrainConfig, workspace: Workspace) -> State:
    folder = workspace.run(name)
    return existing_state(folder, config, kind="run", another="another --name", inputs=contender.inputs)


def _catalogue(workspace: Workspace) -> dict[str, tuple[ResolvedTrainConfig, dict[str, str]]]:
    """Configuration and inputs of every complete run, the first completed first; damaged ones are passed over."""
    found = {}
    for name in workspace.run_names():
        folder = workspace.run(name)
        try:
            manifest = read_manifest(folder, kind="run", verify=False)
            config = load_saved(ResolvedTrainConfig, folder / CONFIG_NAME)
        except (CorruptArtifactError, UsageError):
            continue
        if manifest is not None:
            found[name] = config, manifest.inputs
    return found


def _wanted(config: CompareConfig) -> list[tuple[str, TrainConfig]]:
    """Every label with its configuration, unresolved; the fields were checked when the comparison's were."""
    train = config.train or {}
    wanted = []
    for spec in config.methods:
        said = to_mapping(parse_method(spec))
        wanted.append((spec, spec, {name: said[name] for name in IN_A_SPEC}))
    for label, fields in (config.variants or {}).items():
        wanted.append((label, f"variants.{label}", {"synthetic": False, **fields}))
    return [(label, _with_shared(fields, train, where)) for label, where, fields in wanted]


def _with_shared(fields: Mapping[str, Any], train: Mapping[str, Any], where: str) -> TrainConfig:
    """`fields` over the shared ones, of which those without effect are left out: a temperature, of cross-entropy."""
    config = from_mapping(TrainConfig, overlay(train, fields), where=where)
    known = replace(config, method=config.method or "sau")
    idle = without_effect(known, {"method": METHODS}).keys() & train.keys() - fields.keys()
    return replace(config, **{name: getattr(TrainConfig, name) for name in idle})


def _resolve_all(
    wanted: Sequence[tuple[str, TrainConfig]], methods: Sequence[str], workspace: Workspace, device: torch.device
) -> list[Contender]:
    """Every label resolved as its run would be; all that is wrong with any of them is in the one error."""
    contenders, kinds = [], set()
    problems: dict[str, list[str]] = {}
    # One network for all: where a method needs more than one view, none is trained on a frozen backbone by itself.
    may_freeze = all(config.method is None or METHODS[config.method].takes_features for _, config in wanted)
    for label, config in wanted:
        try:
            plan = plan_training(config, workspace, name=None, device=device, may_freeze=may_freeze)
        except SaukitError as error:
            problems.setdefault(str(error), []).append(label)
            kinds.add(type(error))
            continue
        steps = plan.total_steps
        contenders.append(
            Contender(
                label=label,
                config=plan.config,
                inputs=plan.inputs,
                is_variant=label not in methods,
                steps=steps,
                images_seen=plan.images_of(steps) * plan.method.views_per_step,
            )
        )
    if problems:
        kind = kinds.pop() if len(kinds) == 1 else UsageError
        raise kind("; ".join(f"{', '.join(labels)}: {problem}" for problem, labels in problems.items()))
    return contenders


def _pinned(
    train: Mapping[str, Any], wanted: Sequence[tuple[str, TrainConfig]], contenders: Sequence[Contender]
) -> dict[str, Any]:
    """The shared fields, with what the device decided said in full."""
    values, _ = read_fields(TrainConfig, train)
    for name in PINNED:
        if values.get(name, "auto") == "auto":
            open_ones = [c for (_, asked), c in zip(wanted, contenders, strict=True) if getattr(asked, name) == "auto"]
            if open_ones:
                values[name] = getattr(open_ones[0].config, name)
    return values
