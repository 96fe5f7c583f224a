"""Further commands in running containers."""
