"""Colours that read on white and on dark grey, and that colour-blind readers tell apart.

After Okabe and Ito (2008), "Color Universal Design", moved towards the middle tones.
"""

from __future__ import annotations

INK = "#767676"
BLUE = "#2f86c4"
ORANGE = "#dd7a1c"
GREEN = "#1d9c77"
BRANCHES = (BLUE, ORANGE, GREEN, "#c96a9f", "#b39b16", "#62b0dd", "#8d6fc4")
