"""The only package that imports Ray: actors, replay, broadcast, service loop, checkpoints, command line."""
