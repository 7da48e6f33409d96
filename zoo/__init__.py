"""The model zoo: `.cnn` files of well-known networks.

Their weights are seeded unless the file names a weight file.
"""
