"""The confined worker that unpacks one layer: what runs in a process of its own, on bytes made by strangers.

Every layer pays for its start, and nothing of the agent has any business in it: it imports only the standard library,
the decompressors and itself, and of the standard library nothing that takes milliseconds, such as `typing`.
"""
