"""SPDY/3.1 as Kubernetes clients speak it for exec, attach and port-forward, over any pipe of bytes.

The frames are those of the public draft "SPDY Protocol – Draft 3"; the "3.1" of the HTTP upgrade changes nothing on
this wire: there is no flow control, and back-pressure is the pipe's. What deviates from the draft is what the Go
implementation of the clients (`moby/spdystream`) does.

- `frames`, with `headers` and `dictionary`: bytes to frames and back, without a loop;
- `stream` and `connection`: many streams over one pipe, given as a `Sink`;
- `tcp`: the pipe that is an asyncio transport.
"""
