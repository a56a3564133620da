"""The table of generators."""

from saukit.core.errors import UsageError
from saukit.synthesis.generators import cmo, diffusion, folder, pipeline
from saukit.synthesis.generators.protocol import GeneratorEntry

GENERATORS: dict[str, GeneratorEntry] = {
    "diffusion": diffusion.ENTRY,
    "pipeline": pipeline.ENTRY,
    "folder": folder.ENTRY,
    "cmo": cmo.ENTRY,
}


def find_generator(name: str) -> GeneratorEntry:
    """The row called `name`. Raises: UsageError that lists the generators if there is none."""
    if name not in GENERATORS:
        raise UsageError(f"unknown generator {name!r}: use one of {', '.join(GENERATORS)}")
    return GENERATORS[name]
