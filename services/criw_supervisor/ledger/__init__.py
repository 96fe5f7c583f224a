"""What is recorded of pods and containers, in the store and in memory, and the only place that writes it."""
