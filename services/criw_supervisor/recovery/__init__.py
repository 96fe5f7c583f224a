"""What is done after a restart, and whenever something could not be given back."""
