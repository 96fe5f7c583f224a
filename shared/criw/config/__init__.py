"""The configuration of the crew: what its keys are, a module for each process, and how they are read."""
