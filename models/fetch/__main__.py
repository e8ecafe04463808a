"""The command ``python -m feynkac.models.fetch``."""

import sys

from .fetching import main

sys.exit(main())
