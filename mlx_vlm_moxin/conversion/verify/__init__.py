"""What a conversion cost: source and result compared on the same pictures and text."""
