"""What `verify` asks and how it judges the answers."""
