"""`python -m llamachat` is the `llamachat` command."""

from llamachat.cli import main

main()
