"""The Julia backend: ZeroPaths' solves on PyTorch's memory, through juliacall."""
