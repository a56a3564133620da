"""The table of data sources. Another one is a row, and a file beside this one if it is of another kind."""

import os
from pathlib import Path

from saukit.core.errors import UsageError
from saukit.data.source import Channels, Known, Source
from saukit.data.source_config import SourceConfig
from saukit.data.sources.digits import open_digits
from saukit.data.sources.folder import open_folder
from saukit.data.sources.huggingface import open_huggingface
from saukit.data.sources.listing import ListSet, open_list
from saukit.data.sources.medmnist import open_medmnist
from saukit.data.sources.torchvision_sets import TorchvisionSet

DATA_ROOT = "SAUKIT_DATA"
CIFAR_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Channels = (0.2470, 0.2435, 0.2616)
FASHION = tuple(f"FashionMNIST/raw/{name}-ubyte" for name in (
    "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"
))  # fmt: skip
SVHN = TorchvisionSet(
    "SVHN", ("train_32x32.mat", "test_32x32.mat"), {"split": "train"}, {"split": "test"}, tuple("0123456789")
)

# Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition": its lists and statistics.
BALANCING = "the repository facebookresearch/classifier-balancing (Kang et al. 2020)"
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
INAT_MEAN: Channels = (0.466, 0.471, 0.380)
INAT_STD: Channels = (0.195, 0.194, 0.192)
IMAGENET_LT = ListSet({part: f"ImageNet_LT_{part}.txt" for part in ("train", "val", "test")}, BALANCING)
PLACES_LT = ListSet({part: f"Places_LT_{part}.txt" for part in ("train", "val", "test")}, BALANCING)
# Its own test labels are not public, so it is evaluated on its validation images.
INAT2018 = ListSet({"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}, BALANCING)

# fmt: off
TABLE: dict[str, Known] = {
    "digits": Known(open_digits, 8, flip=False, test_set=False, embedded=True),
    "cifar10": Known(TorchvisionSet("CIFAR10", ("cifar-10-batches-py",)), 32, True, CIFAR_MEAN, CIFAR_STD),
    "cifar100": Known(TorchvisionSet("CIFAR100", ("cifar-100-python",)), 32, True, CIFAR_MEAN, CIFAR_STD),
    "fashion-mnist": Known(TorchvisionSet("FashionMNIST", FASHION), 28, True),
    "svhn": Known(SVHN, 32, flip=False),
    "imagenet-lt": Known(IMAGENET_LT, None, True, IMAGENET_MEAN, IMAGENET_STD, own_files=True, imbalanced=True),
    "places-lt": Known(PLACES_LT, None, True, IMAGENET_MEAN, IMAGENET_STD, own_files=True, imbalanced=True),
    "inat2018": Known(INAT2018, None, True, INAT_MEAN, INAT_STD, own_files=True, imbalanced=True),
    "medmnist": Known(open_medmnist, None, flip=False, imbalanced=True),
    "huggingface": Known(open_huggingface, None, flip=True, test_set=None, own_files=True, imbalanced=True),
    "list": Known(open_list, None, flip=True, test_set=None, own_files=True, imbalanced=True),
    "folder": Known(open_folder, None, flip=True, test_set=None, own_files=True, imbalanced=True),
}
# fmt: on


def open_source(config: SourceConfig, root: Path | None) -> Source:
    """The source that `config` names, its files in `root`.

    Raises: UsageError if `root` is missing or out of place, DataError if the files are not there or damaged.
    """
    return TABLE[config.dataset].open(config, check_root(config.dataset, root) or Path())


def check_root(name: str, root: Path | None) -> Path | None:
    """`root`, or None for embedded data. Raises: UsageError if it is missing or out of place.

    SAUKIT_DATA may be set for other data sets, so embedded data refuses only a root that does not come from there.
    """
    if TABLE[name].embedded:
        if root is not None and str(root) != os.environ.get(DATA_ROOT):
            raise UsageError(f"{name} is embedded in saukit's dependencies and has no root: leave out --root {root}")
        return None
    if root is None:
        raise UsageError(f"{name} lies in a folder: give it as --root DIR, or set {DATA_ROOT}=DIR")
    return root
