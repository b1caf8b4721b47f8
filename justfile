# `just` alone lints and tests; CONTRIBUTING.md has the plain commands.
default: lint test

# Format, and fix what can be fixed automatically.
format:
    ruff check --fix .
    ruff format .

# The linters, as the tests run them.
lint:
    python -m pytest tests/test_house.py -m "slow or not slow"

# The quick tests.
test:
    python -m pytest -n logical --dist loadfile

# What CI also runs.
slow:
    python -m pytest -n logical --dist worksteal -m "(slow or browser) and not gpu and not weights"

# Regenerate the pages that are generated from the code.
docs:
    python docs/make_rewards.py
    python docs/make_reference.py
    python docs/make_figures.py
    python docs/make_plugins.py

# Everything, in a fresh environment.
ci:
    bash .ci/run

# The default suite with the lowest and the newest libraries that pyproject.toml allows, on each Python named.
versions *pythons="3.11 3.12 3.13":
    .ci/versions /tmp/versions {{pythons}}
