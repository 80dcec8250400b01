"""A package by intent, so that no other `tests` that happens to be installed takes its name."""
