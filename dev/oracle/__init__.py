"""Independent implementations that the project is compared with. They need PyTorch."""
