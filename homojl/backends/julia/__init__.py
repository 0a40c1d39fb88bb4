"""The Julia backend: HomoJL's solves on PyTorch's memory, through juliacall."""
