"""Jobs of the service: a bounded queue, threads that run them, and the turns that they take at the network."""
