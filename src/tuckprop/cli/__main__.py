"""`python -m tuckprop.cli`."""

import sys

from tuckprop.cli import main

sys.exit(main())
