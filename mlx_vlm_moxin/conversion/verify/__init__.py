"""How much accuracy a conversion cost: source and result on the same pictures and text."""
