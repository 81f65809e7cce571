"""What tests share. `tests/` is on the path: `from helpers.tiny import retinanet`."""
