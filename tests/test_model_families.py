"""Families of models: each is exact, or refused by name, and the page of the documents says which."""

from pathlib import Path

import pytest
import transformers
from zoo import FAMILIES, page, verdict

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


@pytest.mark.slow
@pytest.mark.parametrize("role", FAMILIES)
def test_all_families_are_what_the_page_says(role):
    rows = [row(family, role, verdict(family, role)) for family in FAMILIES[role]]
    written = PAGE.read_text().split(f"## {role.capitalize()}\n")[1].split("\n## ")[0]
    assert rows == [line for line in written.splitlines() if line.startswith("| ")][1:]


def test_a_page_has_a_row_for_each_verdict():
    text = page({("llama", "causal"): ("keys and values", "exact"), ("t5", "encoder–decoder"): ("—", "refused: why")})
    assert "| llama | LlamaForCausalLM | keys and values | exact |" in text.splitlines()
    assert "| t5 | T5ForConditionalGeneration | — | refused: why |" in text.splitlines()
