"""What goes to the device beside the engine: a runner of its own, a configuration for Triton."""
