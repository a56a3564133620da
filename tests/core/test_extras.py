import importlib.util

import pytest

from saukit.core.errors import EnvironmentFault
from saukit.core.extras import EXTRAS, missing_packages, require_extra


def test_an_extra_that_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else object())
    assert missing_packages("text2image") == ["peft"]
    with pytest.raises(EnvironmentFault, match=r"^LoRA weights needs peft: pip install 'saukit\[text2image\]'$"):
        require_extra("text2image", purpose="LoRA weights")


def test_an_extra_that_is_installed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for extra in EXTRAS:
        require_extra(extra, purpose="this test")
