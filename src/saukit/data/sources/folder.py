"""A folder of images as a source: one subfolder per class, in one tree or in a folder for each part."""

from pathlib import Path

from saukit.data.layout import read_layout
from saukit.data.source import Source
from saukit.data.source_config import SourceConfig
from saukit.data.sources.files import fingerprint_of, part_of_folder, source_of_files


def open_folder(config: SourceConfig, root: Path) -> Source:
    """The images in `root` as a source; reads names and image sizes, decodes nothing yet.

    Raises: as `layout.read_layout`.
    """
    import numpy as np

    layout = read_layout(root, config)
    parts, every = {}, []
    for name, classes in layout.parts.items():
        names = [path.relative_to(root).as_posix() for files in classes.values() for path in files]
        counts = [len(files) for files in classes.values()]
        parts[str(name)] = part_of_folder(root, names, np.repeat(np.arange(len(counts), dtype=np.int64), counts))
        every += names
    return source_of_files(
        tuple(layout.parts["train"]),
        parts,
        fingerprint=fingerprint_of(root, every),
        passed_over=layout.passed_over,
        notes=layout.notes,
        warnings=layout.warnings,
    )
