"""``python -m wsgigate``: the command line."""

import sys

from wsgigate.cli import main

if __name__ == "__main__":
    sys.exit(main())
