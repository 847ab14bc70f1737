"""`python -m tuckprop`: the command line without the console script."""

import sys

from tuckprop.cli import main

if __name__ == "__main__":
    sys.exit(main())
