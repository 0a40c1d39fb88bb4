"""The version; of ZeroPaths too (julia/Project.toml), and in CITATION.cff."""

__version__ = "0.1.0"
