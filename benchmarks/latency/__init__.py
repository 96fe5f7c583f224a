"""How long each call of a pod's life takes, against any CRI socket."""
