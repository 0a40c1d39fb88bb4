"""The Julia backend: ZeroPaths's solves on PyTorch's memory, through juliacall."""
