"""The cluster's side: objects and tokens that the tool keeps in the API, and what it reads there."""
