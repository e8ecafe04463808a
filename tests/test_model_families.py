"""Families of models: each is exact, or refused by name, and the page of the documents says which."""

from pathlib import Path

import pytest
import transformers
from zoo import FAMILIES, NOT_TRIED, build, page, verdict, worst_error

from feynkac.models.testing import tiny_lm
from feynkac.ppl.errors import Unsupported

PAGE = Path(__file__).parents[1] / "docs" / "model_families.md"
QUICK = {
    "causal": [
        "bamba", "bart", "bloom", "deepseek_v32", "gemma3_text", "git", "gpt2", "llama", "mixtral", "opt", "phi3",
        "roberta", "xlm",
    ],
    "encoder–decoder": ["encoder-decoder", "m2m_100", "nllb-moe", "switch_transformers", "t5gemma"],
}  # fmt: skip


def row(family, role, found):
    return f"| {family} | {FAMILIES[role][family]} | {found[0]} | {found[1]} |"


@pytest.mark.parametrize(("family", "role"), [(family, role) for role in QUICK for family in QUICK[role]])
def test_a_family_is_what_the_page_says(family, role):
    assert row(family, role, verdict(family, role)) in PAGE.read_text().splitlines()


def test_the_page_is_of_this_transformers():
    assert f"of transformers {transformers.__version__}, " in PAGE.read_text()


def test_the_page_has_all_families():
    for role, families in FAMILIES.items():
        written = PAGE.read_text().split(f"## {role.capitalize()}\n")[1].split("\n## ")[0]
        rows = [line for line in written.splitlines() if line.startswith("| ")][1:]
        assert [line.split(" | ")[:2] for line in rows] == [[f"| {name}", kind] for name, kind in families.items()]


THIRD = 0
"""Which third of the families the slow tests build; ``python docs/families.py`` tries all, and writes the page."""


@pytest.mark.slow
@pytest.mark.parametrize("role", FAMILIES)
def test_a_third_of_the_families_are_what_the_page_says(role):
    written = PAGE.read_text().splitlines()
    for family in list(FAMILIES[role])[THIRD::3]:
        assert row(family, role, verdict(family, role)) in written


NO_EXIT = {"git", "hrm_text", "longcat_flash", "modernbert-decoder", "phi4_multimodal"}
"""Families whose layers are not in one list."""
NO_CHOICE = {"beam", "deepseek_v4", "doge", "flint", "longcat_flash", "phimoe"}
"""Families that have experts, but none as small models, or which do not choose them by their number, or not one."""


@pytest.mark.slow
@pytest.mark.parametrize("varied", ["layers", "experts"])
@pytest.mark.parametrize("role", FAMILIES)
def test_variants_of_families_are_exact_or_refused(role, varied):
    refused, worst = {}, {}
    listed = {"layers": NO_EXIT, "experts": NO_CHOICE}[varied] & FAMILIES[role].keys()
    tried = {*list(FAMILIES[role])[THIRD::3], *listed} - NOT_TRIED.keys()
    for family in sorted(tried):
        try:
            lm = tiny_lm(model=build(family, role))
        except Unsupported:
            continue
        try:
            worst[family] = worst_error(lm.variant(**{varied: 1}))
        except Unsupported as refusal:
            refused[family] = str(refusal)
    assert max(worst.values(), default=0.0) < 1e-3
    if varied == "layers":
        assert refused.keys() == (NO_EXIT if role == "causal" else set())
    else:
        assert {family for family, reason in refused.items() if "has no experts" not in reason} <= NO_CHOICE
        assert len(worst) >= (15 if role == "causal" else 0)


def test_a_page_has_a_row_for_each_verdict():
    text = page({("llama", "causal"): ("keys and values", "exact"), ("t5", "encoder–decoder"): ("—", "refused: why")})
    assert "| llama | LlamaForCausalLM | keys and values | exact |" in text.splitlines()
    assert "| t5 | T5ForConditionalGeneration | — | refused: why |" in text.splitlines()
