"""criwctl: the crew's command line for people, and the embedded crew (`criwctl up`).

It owns nothing. It must never do an agent's work: what it shows or changes goes through their sockets.
"""
