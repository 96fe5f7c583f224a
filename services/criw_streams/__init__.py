"""The streams process: sessions of exec, attach and port-forward, over SPDY and WebSocket.

The supervisor decides on a session and describes it; from then on the session is this process's alone, whatever becomes
of the others.
"""
