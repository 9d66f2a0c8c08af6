"""What `testyard.vms` is made of."""
