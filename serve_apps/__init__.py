"""Ray Serve applications over the plain classes of qedge."""
