"""The network agent: network namespaces, addresses, routes and host ports of pods.

It owns the bridge, the pinned namespaces and the address pool. It must never know what runs inside a pod.
"""
