"""Which method to start with, as far as the repository's own comparisons say. Imports no torch."""

from saukit.training.presets import PRESETS


def starting_method(passes: float, *, synthetic: bool, pretrained: bool = False) -> str:
    """Options of `saukit train` to start with, and the record that says so (examples/benchmarks/results/cpu).

    What was best depended on how long a network trains: `passes` over the real images. Between the budgets recorded (3,
    10 and 40 to 130 passes) the nearest is taken. `synthetic`: there is a cache of synthetic images. `pretrained`: the
    network is; what was best on its frozen features did not depend on `passes`.
    """
    real_only = " --no-synthetic" if synthetic else ""
    if pretrained:
        record = "on average the best of six methods on three cuts of photos of clothes"
        return f"for photos start with `--method balanced-softmax{real_only}` ({record})"
    if passes < 6:
        options = f"--method class-balanced{real_only}"
        record = "the best of 29 methods on CIFAR-10-LT at 3 passes"
    elif passes < 20:
        options = f"--method balanced-softmax{real_only}"
        record = "on CIFAR-10-LT at 10 passes within 2 points of the best, which had synthetic images"
    elif synthetic:
        options = "--method sau --prior-correction 1 --real-finish 0.5"
        record = "the highest on digits at 40 to 49 passes, at 130 level with SAU on real images alone"
    else:
        options = "--method mixup-cutmix --prior-correction 1"
        record = "on digits at 40 passes level with SAU, in half its time"
    return f"at {passes:.{int(passes < 2)}f} passes over the real images start with `{options}` ({record})"


def default_passes(real_images: int, *, device_type: str) -> float:
    """Passes over the real images of a run with no options, on a device of this type."""
    preset = PRESETS["small" if device_type == "cpu" else "fast"]
    if preset.epochs is not None:
        return preset.epochs
    return (preset.steps or 0) * min(preset.batch_size, real_images) / real_images
