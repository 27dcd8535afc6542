"""Users' kernels, in processes of their own."""
