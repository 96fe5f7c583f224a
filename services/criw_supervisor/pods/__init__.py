"""The life of pod sandboxes: run, stop, remove."""
