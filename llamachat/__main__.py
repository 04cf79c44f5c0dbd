"""The `llamachat` command, also as `python -m llamachat`."""


def main() -> None:
    """Console entry point. Ctrl-C may come while the command itself is being imported."""
    try:
        from llamachat.cli import main as command
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    command()


if __name__ == "__main__":
    main()
