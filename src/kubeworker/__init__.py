"""kubeworker turns plain Linux machines into Kubernetes worker nodes, from one control host, over SSH."""
