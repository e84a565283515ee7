"""What must hold before anything is changed."""
