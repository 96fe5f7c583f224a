"""The builtin provider: bridge, veth pairs, addresses from the pod ranges, masquerade and host ports."""
