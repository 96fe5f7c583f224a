"""What several test packages need: a crew of one's own, a registry with images, a look at the host."""
