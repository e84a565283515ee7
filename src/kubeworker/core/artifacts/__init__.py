"""What is put on nodes: binaries and images, where they come from, how they are packed."""
