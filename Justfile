# The developer's manual. Every recipe works in a virtual environment made by `just setup`.

# Make .venv with everything that tests and checks need
setup:
    python3 -m venv .venv
    .venv/bin/python -m pip install -c constraints.txt -e '.[test]'

# Run the tests (add `-m slow` for the long ones)
test *ARGS:
    .venv/bin/pytest {{ARGS}}

# Lint, format and types, as CI checks them
check:
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy

# Mend what can be mended
fix:
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .

# Measure the speed of everything in benchmarks/
bench:
    for script in benchmarks/*.py; do .venv/bin/python "$script"; done

# The main job in under three minutes
quickstart:
    .venv/bin/icll-zoo quickstart
