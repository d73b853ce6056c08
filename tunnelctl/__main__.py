"""``python -m tunnelctl``."""

import sys

from tunnelctl.cli import main

sys.exit(main())
