"""Float weights to int8 and int4. Imports llamachat's tensors and formats; nothing there imports this."""
