"""``python -m draft`` is the command ``draft``."""

from draft_cli.start import main

if __name__ == "__main__":
    main()
