"""The process of one contender of `llamachat bench`; bench/contest.py starts it, bench/runners.py is what it does."""

import sys

from llamachat.bench.runners import serve
from quantize.prepare import prepare

if __name__ == "__main__":
    serve(sys.argv[1], prepare)
