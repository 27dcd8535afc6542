"""A plug-in that cannot be imported."""

raise ImportError("libsomething.so.1: cannot open shared object file")
