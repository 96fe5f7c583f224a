"""What several test packages need: crews, registries with images, agents that a test scripts, a look at the host.

Words for what runs:

- a *crew* (`crew.running_crew`): agents as children of the test, on directories of their own, without pods or images;
- a *node* (`node.running_node`): a crew and a registry in another process, of which a test has the CRI socket and
  references to pull; another runtime can take its place;
- *supervised* (`supervised.running_supervised`): a crew with an image and with an OCI runtime that fails or waits when
  told to; a module has one and lends it (`supervised.lent`) to tests that kill its agents;
- *up* (`up.running_up`): a crew as users start it, the children of `criwctl up`;
- a *door* (`door.open_door`): no crew: a real door, in the test's own process, before agents the test scripts.

`storage`, `image_agent` and `network` are crews of one or two agents with a client that speaks in their nouns.
"""
