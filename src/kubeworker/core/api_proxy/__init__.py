"""The way to the API servers, and what happens to it when one fails."""
