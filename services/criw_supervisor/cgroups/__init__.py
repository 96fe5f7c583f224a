"""Control groups: the host's hierarchies, what is used in them, and the names pods' cgroups may have."""
