"""The model zoo: `.cnn` files of well-known networks, with seeded weights unless they name a file."""
