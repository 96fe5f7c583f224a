"""The storage agent: unpacked layers, container root filesystems and their disk usage.

It owns every directory and overlay mount a container's root is made of. It must never talk to a registry or a runtime.
"""
