"""How the embedded models were made: run ``python -m draft_emoji.recipe COMMAND --preset cpu|gpu --out DIR``."""
