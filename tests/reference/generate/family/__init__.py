"""Small members of the Prismatic family, in their file layouts, with the reference's outputs."""
