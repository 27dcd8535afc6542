"""What several tests make: inputs, fakes of libraries and of a GPU, a way to run a driver. No test imports another."""
