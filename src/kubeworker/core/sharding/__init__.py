"""A fleet in parts: who works on which, and what a part is handed."""
