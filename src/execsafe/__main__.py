"""``python -m execsafe``: the same as the ``execsafe`` command."""

import sys

from execsafe.bot.cli import main

sys.exit(main())
