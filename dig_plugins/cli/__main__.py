"""``python -m dig_plugins.cli``."""

from . import main

if __name__ == "__main__":
    main()
