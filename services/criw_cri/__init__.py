"""The door: serves the CRI on one socket and passes each call's bytes to the agent that answers it.

It owns nothing and needs no privilege. It must never decode what it need not merge, nor decide anything about a pod.
"""
