"""How each method makes an update: one file per kind of rule."""
