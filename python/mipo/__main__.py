"""`python -m mipo`, as `accelerate launch -m mipo train` needs it."""

import sys

from mipo.cli import main

sys.exit(main())
