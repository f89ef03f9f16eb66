"""The parts and checks of on_gpu.py, and what runs them."""
