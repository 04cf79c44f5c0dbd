"""One conversation with a model: its tree, what of it the model sees, and what of it is on disk. See session.py."""
