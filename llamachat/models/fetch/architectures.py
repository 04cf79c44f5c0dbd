"""Which GGUF architectures are ours: asked before a file is fetched. Reads no file."""


def runs(name: str) -> bool:
    """Whether models of this architecture are read."""
    from llamachat.families import ARCHITECTURES
    from llamachat.formats.gguf_t5 import ARCH

    return name in ARCHITECTURES or name == ARCH
