"""The data sets: each published form, read into :class:`~.example.Example`."""
