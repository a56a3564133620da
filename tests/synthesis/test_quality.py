import numpy as np
import pytest
import torch

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.split import Split
from saukit.data.synthetic import load_cache
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize


@pytest.mark.slow
def test_a_classifier_that_knows_all_digits_recognises_the_drawn_ones(
    workspace: Workspace, split: Split, cpu: torch.device, reporter: Reporter
) -> None:
    """Tiny preset, four tenths of its training. A network that ignores the class would be right in a tenth."""
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    digits = load_digits()
    judge = SVC(gamma=0.001).fit(digits.data, digits.target)

    def agreement(config: SynthConfig) -> dict[int, float]:
        """Share of the images of each class that the judge takes for it."""
        synthesize(config, workspace, device=cpu, force=True, resume=False, reporter=reporter)
        cache = load_cache(workspace, split)
        seen = judge.predict(cache.images[:].mean(axis=1).reshape(len(cache.images), -1) / 255 * 16)
        return {label: float((seen == label)[cache.labels == label].mean()) for label in np.unique(cache.labels)}

    untrained = agreement(SynthConfig(train_steps=1, per_class_target=40, preflight=0, audit=False))
    assert np.mean(list(untrained.values())) < 0.4
    trained = agreement(SynthConfig(train_steps=400, per_class_target=115, preflight=0, audit=False))
    assert min(trained[label] for label in (1, 2, 3, 4)) > 0.8  # 91, 59, 38 and 24 real images
    assert np.mean(list(trained.values())) > 0.8
