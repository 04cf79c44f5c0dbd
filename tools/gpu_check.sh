#!/bin/sh
# What this program does on a GPU, checked and measured: sh tools/gpu_check.sh [--shape 8b] [--minutes 8]
# Needs python3 with torch and numpy, nothing from a network; bitsandbytes and transformers are used where they are.
# Prints the tables of README.md's section "GPU". PYTHON names another interpreter.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$root/tools:$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/tools/gpu_check.py" "$@"
