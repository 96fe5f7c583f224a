"""The commands: what is typed becomes calls, answers become tables or JSON. The work is in the modules above.

Those are imported inside the commands: none should wait for what only another one needs.
"""
