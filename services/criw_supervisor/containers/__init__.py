"""The life of containers: create, start, stop, the end, remove, update."""
