"""The embedded backend: complete, in eager PyTorch, and the reference that Julia's is checked against."""
