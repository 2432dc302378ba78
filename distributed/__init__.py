"""The only package that imports Ray: actors, replay, broadcast, service loop, checkpoints and the command line."""
