"""The other agents, as far as the supervisor asks them: typed calls with their time limits."""
