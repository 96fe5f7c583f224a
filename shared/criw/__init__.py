"""The library every agent stands on: configuration, gRPC, service start, store, errors, kernel calls.

It owns no state and starts nothing by itself. It must never import a service, nor know what a pod or an image is.
"""

__version__ = "0.1.0"
