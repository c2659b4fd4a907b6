"""``python -m quart_ots``: the same as the console script ``quart-ots``."""

from .cli import main

if __name__ == "__main__":
    main()
