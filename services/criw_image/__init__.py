"""The image agent: registries, blobs and image records.

It owns what was pulled and under which names. It must never mount, unpack or run anything: it parses the internet.
"""
