"""Cat outlines in, a measured U-Net out. Knows no YAML, no command line, no MLflow, no `bench`."""

__version__ = "0.1.0"
