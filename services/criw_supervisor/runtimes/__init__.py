"""Runtime handlers: who holds the processes of containers."""
