"""The commands of `llamachat`, one file each. Nothing heavy is imported at their top: --help must be instant."""
