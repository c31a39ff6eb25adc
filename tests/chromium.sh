#!/usr/bin/env bash
# Runs a command with Debian's Chromium for the tests in a browser.
#   tests/chromium.sh python -m pytest tests/app/test_browser.py
# It is installed where it is missing and we may; else the command runs without, and these tests skip.
set -euo pipefail
. "$(dirname "$0")/debian.sh"

command -v chromium >/dev/null || install chromium ||
    echo "The tests in a browser will skip: we cannot install Debian's package 'chromium' here." >&2
exec "$@"
