"""Model families that packages bring through their hook."""

from __future__ import annotations

from typing import Any

import pytest

from draft.diffusion.families import families
from draft.errors import PluginError, PluginWarning
from draft.rewards.extensions import offered_families

ROW = """
    import draft

    @draft.hookimpl
    def draft_families():
        return [draft.Family(name="toy", pipeline="ToyPipeline", part="transformer", load="toy.model:load")]
"""


def test_a_family_of_an_installed_package_is_among_all_families(site: Any) -> None:
    site.install("draft-toy", "ext_toy", ROW, extension="toy")
    assert [(dist, row.name) for dist, row in offered_families()] == [("draft-toy", "toy")]
    assert families()["toy"].pipeline == "ToyPipeline"


def test_a_name_that_is_taken_names_both_packages(site: Any) -> None:
    site.install("draft-toy", "ext_toy_taken", ROW.replace('"toy"', '"sd"'), extension="toy")
    with pytest.raises(PluginError, match="'sd' of draft-diffusion and 'sd' of draft-toy"):
        families()


def test_a_hook_that_returns_something_else_is_a_warning_and_the_others_count(site: Any) -> None:
    wrong = "import draft\n@draft.hookimpl\ndef draft_families():\n    return ['sd']\n"
    site.install("draft-bad", "ext_bad_families", wrong, extension="bad")
    site.install("draft-toy", "ext_toy_again", ROW, extension="toy")
    with pytest.warns(PluginWarning, match=r"'draft_families' must return draft.Family values \(got 'sd'\)"):
        assert [row.name for _, row in offered_families()] == ["toy"]
