"""The version; of HomoJL too (julia/Project.toml), and in CITATION.cff."""

__version__ = "0.1.0"
