"""What stands behind llamachat.tokenizers.open.Tokenizer: one module a kind of file, each importing its library when used."""
