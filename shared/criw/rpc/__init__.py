"""gRPC over unix sockets."""
