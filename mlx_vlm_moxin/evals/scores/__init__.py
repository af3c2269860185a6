"""What an answer is worth and what follows from all of them, without any model."""
