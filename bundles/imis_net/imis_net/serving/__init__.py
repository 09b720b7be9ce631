"""What stands between a Triton server and the library: the process itself, the tensors on the wire, its models."""
