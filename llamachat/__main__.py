"""The `llamachat` command, also as `python -m llamachat`."""

import gc
import os


def main() -> None:
    """Console entry point. Ctrl-C may come, and memory end, while the command itself is being imported."""
    gc.set_threshold(500_000)  # loading makes many objects and no garbage: looking for it took a tenth of the start
    if hasattr(os, "uname") and os.uname().machine == "x86_64":  # elsewhere torch has the same BLAS as numpy
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads, for products that nobody asks for, cost 14 ms
    try:
        from llamachat.engines.world import launched

        if (world := launched()) and world.rank:  # torchrun's others have no command of their own
            from llamachat.cli.rank_process import of_torchrun

            of_torchrun()
        from llamachat.cli.main import main as command
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (MemoryError, OSError, ImportError) as error:  # ulimit left too little even for this
        raise SystemExit(_told(error)) from None
    command()


def _told(error: MemoryError | OSError | ImportError) -> str:
    try:
        from llamachat.errors import lacking

        return f"error: {lacking(error) or error}"
    except (MemoryError, OSError, ImportError):
        return f"error: {error}"


if __name__ == "__main__":
    main()
