"""Netlink: what is asked of the kernel's network stack, encoded and read by pyroute2, sent in batches by us.

Nothing outside this agent imports it: pyroute2 costs each process that does 8 MB (docs/decisions/0007).
"""
