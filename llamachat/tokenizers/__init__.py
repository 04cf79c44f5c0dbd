"""What stands behind llamachat.tokenizer.Tokenizer: one module a kind of file, each importing its library when used."""
