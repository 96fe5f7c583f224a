"""Whether two requests are the same."""

import hashlib
import json

import betterproto2


def digest(message: betterproto2.Message) -> str:
    """The same for equal messages, in whatever order their maps came: Go writes those in a new one each time."""
    return hashlib.sha256(json.dumps(message.to_dict(), sort_keys=True).encode()).hexdigest()
