"""``make faults``. Apart from suite.py, as processes that are spawned can't import a package's main module."""

import sys

from tests.faults.suite import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
