"""Write ``docs/model_families.md``: what is true of every family of models that transformers knows.

python docs/families.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from zoo import FAMILIES, page, verdict

if __name__ == "__main__":
    found = {}
    for role, names in FAMILIES.items():
        for family in names:
            found[family, role] = verdict(family, role)
            print(family, *found[family, role], flush=True)
    Path(__file__).with_name("model_families.md").write_text(page(found))
