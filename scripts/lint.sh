#!/bin/sh
# Style, format and types of the whole tree; changes nothing.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/ruff check --quiet
.venv/bin/ruff format --check --quiet
.venv/bin/mypy --no-error-summary
