"""The `llamachat` command, also as `python -m llamachat`."""

import gc


def main() -> None:
    """Console entry point. Ctrl-C may come while the command itself is being imported."""
    gc.set_threshold(500_000)  # loading makes many objects and no garbage: looking for it took a tenth of the start
    try:
        from llamachat.cli import main as command
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    command()


if __name__ == "__main__":
    main()
