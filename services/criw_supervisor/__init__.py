"""The supervisor: pods, containers, cgroups, logs and statistics; it orchestrates the other agents.

It owns the life of every process of a pod. It must never touch a registry, a layer or an address itself.
"""
