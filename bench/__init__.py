"""The harness: decides what to train, keeps what came of it, lays the results side by side."""
